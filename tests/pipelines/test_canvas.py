"""Positions on canvases that are larger than the images of training."""

import numpy as np
import pytest

from imagen_jax.pipelines.canvas import axis_positions, canvas_positions

TRAINED = 64


@pytest.mark.parametrize("side", [32, 64])
def test_no_larger_than_trained(side):
    np.testing.assert_allclose(axis_positions(side, TRAINED, 8, 0), (np.arange(side) + 0.5) / side)


def test_beside_an_image():
    positions = axis_positions(128, TRAINED, 0, 64)
    trained = (np.arange(TRAINED) + 0.5) / TRAINED
    np.testing.assert_allclose(positions[:32], trained[:32])
    # the right half of training in the middle of the new part
    np.testing.assert_allclose(positions[80:112], trained[32:])
    np.testing.assert_allclose(positions[32:80], 0.5)
    np.testing.assert_allclose(positions[112:], 1)
    np.testing.assert_allclose(axis_positions(128, TRAINED, 64, 0), 1 - positions[::-1], atol=1e-6)


def test_around_an_image():
    positions = axis_positions(128, TRAINED, 32, 32)
    trained = (np.arange(TRAINED) + 0.5) / TRAINED
    np.testing.assert_allclose(positions[:32], trained[:32])
    np.testing.assert_allclose(positions[32:96], 0.5)
    np.testing.assert_allclose(positions[96:], trained[32:])


def test_ascending_at_the_scale_of_training():
    rng = np.random.default_rng(0)
    for _ in range(50):
        side = int(rng.integers(TRAINED + 1, 4 * TRAINED))
        before = int(rng.integers(side))
        after = int(rng.integers(side - before))
        positions = axis_positions(side, TRAINED, before, after)
        steps = np.diff(positions)
        assert steps.min() >= 0 and steps.max() <= 1 / TRAINED + 1e-6
        # nothing of the trained image is left out
        assert positions[0] <= 0.5 / TRAINED and positions[-1] >= 1 - 0.5 / TRAINED


def test_both_axes():
    positions = canvas_positions(3, (64, 128), (TRAINED, TRAINED), (0, 0), (0, 64))
    rows, columns = positions["row_positions"], positions["column_positions"]
    assert rows.shape == (3, 64) and columns.shape == (3, 128)
    np.testing.assert_array_equal(rows[2], axis_positions(64, TRAINED, 0, 0))
    np.testing.assert_array_equal(columns[2], axis_positions(128, TRAINED, 0, 64))
