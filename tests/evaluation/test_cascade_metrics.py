"""Metrics of cascades on images with known values."""

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.evaluation.cascade_metrics import color_drift, compute_metrics, consistency, saturation
from imagen_jax.images.array import to_float, to_uint
from imagen_jax.images.resize import resize

MAX_CONSISTENCY = 10 * np.log10(255**2 * 12)


def constant_images(*colors, side):
    """Returns an image of each color, uint8 [N, side, side, C]."""
    return np.broadcast_to(np.uint8(colors)[:, None, None, :], (len(colors), side, side, len(colors[0]))).copy()


def random_images(count=3, side=16):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def test_consistency_of_constant_images():
    images = constant_images((100, 100, 100), (100, 100, 100), (0, 0, 0), side=16)
    low_res = constant_images((110, 110, 110), (101, 99, 100), (255, 255, 255), side=8)
    expected = 10 * np.log10(255**2 / np.array([100, 2 / 3, 255**2]))
    np.testing.assert_allclose(consistency(images, low_res), expected, rtol=1e-5, atol=1e-5)


def test_consistency_with_downsampled_self():
    images = random_images()
    low_res = to_uint(resize(to_float(jnp.asarray(images)), 8, 8), np.uint8)
    assert (consistency(images, low_res) > MAX_CONSISTENCY - 1).all()
    # other images are inconsistent, and so is subsampling without a filter
    assert (consistency(images, low_res[::-1])[[0, 2]] < 20).all()
    assert (consistency(images, images[:, ::2, ::2]) < 20).all()


def test_consistency_is_finite():
    np.testing.assert_allclose(
        consistency(constant_images((7, 8, 9), side=4), constant_images((7, 8, 9), side=2)), MAX_CONSISTENCY
    )
    assert pytest.approx(58.92, abs=0.01) == MAX_CONSISTENCY


@pytest.mark.trap("color tint")
def test_color_drift_per_image_and_channel():
    low_res = random_images(side=8)
    images = np.kron(np.minimum(low_res, 240), np.ones((1, 2, 2, 1), np.uint8))
    tinted = images + np.uint8([[5, 0, 1], [0, 0, 0], [0, 7, 0]])[:, None, None, :]
    drift = color_drift(tinted, np.minimum(low_res, 240))
    np.testing.assert_allclose(drift, [[5, 0, 1], [0, 0, 0], [0, 7, 0]], atol=1e-9)


def test_saturation():
    images = np.full((2, 2, 2, 3), 128, np.uint8)
    assert saturation(images) == 0
    images[0, 0, 0], images[1, 1, 1, 2], images[1, 0, 0] = 255, 0, (1, 254, 128)
    assert saturation(images) == 4 / 24


def test_compute_metrics():
    images = constant_images((100, 52, 0), (100, 48, 0), side=4)
    low_res = constant_images((90, 50, 0), (100, 50, 0), side=2)
    metrics = compute_metrics(images, low_res, real=constant_images((0, 255, 7), side=4))
    assert metrics == pytest.approx(
        {
            "saturation": 1 / 3,
            "saturation_real": 2 / 3,
            "consistency_db": np.mean(10 * np.log10(255**2 * 3 / np.array([104, 4]))),
            "color_drift/red": 5,
            # the two drifts cancel
            "color_drift/green": 0,
            "color_drift/blue": 0,
            "color_drift/rms": np.sqrt((100 + 4 + 4) / 6),
        },
        rel=1e-5,
        abs=1e-6,
    )


def test_one_channel_is_gray():
    metrics = compute_metrics(
        constant_images((9,), side=4), constant_images((7,), side=2), real=constant_images((0,), side=4)
    )
    assert metrics["color_drift/gray"] == metrics["color_drift/rms"] == 2


def test_base_stage_has_only_saturation():
    assert compute_metrics(
        constant_images((0, 9, 9), side=4), None, constant_images((0, 0, 9), side=4)
    ) == pytest.approx({"saturation": 1 / 3, "saturation_real": 2 / 3})
