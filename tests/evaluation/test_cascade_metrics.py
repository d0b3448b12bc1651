"""Measures of pictures, on pictures made so that they are known."""

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.evaluation.cascade_metrics import color_drift, consistency, measure, saturation
from imagen_jax.images.array import to_float, to_whole
from imagen_jax.images.resize import resize

NEVER_WORSE = 10 * np.log10(255**2 * 12)


def plain(*colours, side):
    """A picture of each colour, uint8 [N, side, side, C]."""
    return np.broadcast_to(np.uint8(colours)[:, None, None, :], (len(colours), side, side, len(colours[0]))).copy()


def some_pictures(count=3, side=16):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def test_consistency_of_plain_pictures_is_that_of_their_difference():
    images = plain((100, 100, 100), (100, 100, 100), (0, 0, 0), side=16)
    low_res = plain((110, 110, 110), (101, 99, 100), (255, 255, 255), side=8)
    expected = 10 * np.log10(255**2 / np.array([100, 2 / 3, 255**2]))
    np.testing.assert_allclose(consistency(images, low_res), expected, rtol=1e-5, atol=1e-5)


def test_a_picture_is_consistent_with_itself_made_small_as_training_makes_it():
    images = some_pictures()
    low_res = to_whole(resize(to_float(jnp.asarray(images)), 8, 8), np.uint8)
    assert (consistency(images, low_res) > NEVER_WORSE - 1).all()
    # and with no other, nor with itself where pixels are only left out
    assert (consistency(images, low_res[::-1])[[0, 2]] < 20).all()
    assert (consistency(images, images[:, ::2, ::2]) < 20).all()


def test_consistency_is_finite():
    np.testing.assert_allclose(consistency(plain((7, 8, 9), side=4), plain((7, 8, 9), side=2)), NEVER_WORSE)
    assert pytest.approx(58.92, abs=0.01) == NEVER_WORSE


def test_a_tint_is_measured_by_picture_and_channel():
    low_res = some_pictures(side=8)
    images = np.kron(np.minimum(low_res, 240), np.ones((1, 2, 2, 1), np.uint8))
    tinted = images + np.uint8([[5, 0, 1], [0, 0, 0], [0, 7, 0]])[:, None, None, :]
    drift = color_drift(tinted, np.minimum(low_res, 240))
    np.testing.assert_allclose(drift, [[5, 0, 1], [0, 0, 0], [0, 7, 0]], atol=1e-9)


def test_saturation_is_the_share_of_values_at_either_end():
    images = np.full((2, 2, 2, 3), 128, np.uint8)
    assert saturation(images) == 0
    images[0, 0, 0], images[1, 1, 1, 2], images[1, 0, 0] = 255, 0, (1, 254, 128)
    assert saturation(images) == 4 / 24


def test_all_measures_have_names():
    images = plain((100, 52, 0), (100, 48, 0), side=4)
    low_res = plain((90, 50, 0), (100, 50, 0), side=2)
    found = measure(images, low_res, real=plain((0, 255, 7), side=4))
    assert found == pytest.approx(
        {
            "saturation": 1 / 3,
            "saturation_real": 2 / 3,
            "consistency_db": np.mean(10 * np.log10(255**2 * 3 / np.array([104, 4]))),
            "color_drift/red": 5,
            # tints that cancel each other
            "color_drift/green": 0,
            "color_drift/blue": 0,
            "color_drift/rms": np.sqrt((100 + 4 + 4) / 6),
        },
        rel=1e-5,
        abs=1e-6,
    )


def test_pictures_of_one_channel_are_gray():
    found = measure(plain((9,), side=4), plain((7,), side=2), real=plain((0,), side=4))
    assert found["color_drift/gray"] == found["color_drift/rms"] == 2


def test_a_base_stage_has_no_other_to_be_held_against():
    assert measure(plain((0, 9, 9), side=4), None, plain((0, 0, 9), side=4)) == pytest.approx(
        {"saturation": 1 / 3, "saturation_real": 2 / 3}
    )
