import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.images.resize import resize


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)


@pytest.mark.parametrize("size", [4, 16])
def test_size_and_range(images, size):
    resized = resize(images, size, size)
    assert resized.shape == (2, size, size, 3)
    assert np.abs(resized).max() <= 1 + 1e-6  # bilinear never overshoots


def test_same_size_is_identity(images):
    np.testing.assert_allclose(resize(images, 8, 8), images, atol=1e-6)


@pytest.mark.parametrize("size", [4, 16])
def test_constant_image_stays_constant(size):
    np.testing.assert_allclose(resize(jnp.full((1, 8, 8, 1), 0.3), size, size), 0.3, rtol=1e-5)


@pytest.mark.parametrize("size", [4, 16])
def test_commutes_with_flips(images, size):
    """Resizing a flipped image equals flipping the resized image: pixel centers are not shifted."""
    flipped = resize(images[:, ::-1, ::-1], size, size)
    np.testing.assert_allclose(flipped, resize(images, size, size)[:, ::-1, ::-1], atol=1e-5)


def test_examples_and_channels_are_independent(images):
    alone = resize(images[1:, :, :, 2:], 16, 16)
    np.testing.assert_allclose(resize(images, 16, 16)[1:, :, :, 2:], alone, atol=1e-6)


def test_downsampling_is_antialiased():
    """Without antialiasing a checkerboard becomes one of its two colors."""
    board = np.float32(np.indices((16, 16)).sum(0) % 2)[None, :, :, None]
    np.testing.assert_allclose(resize(board, 4, 4)[:, 1:3, 1:3], 0.5, atol=0.02)


def test_ramp_stays_linear():
    columns = np.broadcast_to(np.arange(8, dtype=np.float32)[None, None, :, None], (1, 8, 8, 1))
    # half-pixel centers: column j of 16 is at (j + 0.5) / 2 - 0.5 of 8
    expected = (np.arange(16) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(resize(columns, 8, 16)[0, 3, 1:-1, 0], expected[1:-1], atol=1e-5)


def interpolate_rows(values, positions):
    """Returns values [H, W, C] at fractional rows, by linear interpolation."""
    below = np.clip(np.floor(positions).astype(int), 0, len(values) - 2)
    fraction = (positions - below)[:, None, None]
    return values[below] * (1 - fraction) + values[below + 1] * fraction


@pytest.mark.parametrize("height, width", [(16, 24), (15, 9), (8, 32)])
def test_align_corners(images, height, width):
    """Row j of H is at row j (h - 1) / (H - 1) of h."""
    resized = resize(images, height, width, align_corners=True)
    for image, other in zip(images, resized, strict=True):
        rows = interpolate_rows(image, np.arange(height) * 7 / (height - 1))
        expected = interpolate_rows(rows.swapaxes(0, 1), np.arange(width) * 7 / (width - 1)).swapaxes(0, 1)
        np.testing.assert_allclose(other, expected, atol=1e-5)
    np.testing.assert_allclose(
        resized[:, [0, 0, -1, -1], [0, -1, 0, -1]], images[:, [0, 0, 7, 7], [0, 7, 0, 7]], atol=1e-5
    )


def test_align_corners_same_size_is_identity(images):
    np.testing.assert_allclose(resize(images, 8, 8, align_corners=True), images, atol=1e-6)


def test_align_corners_by_hand():
    images = jnp.broadcast_to(jnp.array([0.0, 1.0, 2.0, 6.0])[None, None, :, None], (1, 2, 4, 1))
    aligned, plain = (resize(images, 2, 7, align_corners=on)[0, 1, :, 0] for on in (True, False))
    np.testing.assert_allclose(aligned, [0, 0.5, 1, 1.5, 2, 4, 6], atol=1e-6)
    # pixel centers at (j + 1/2) 4/7 - 1/2 of the four; clamped beyond the first and the last
    np.testing.assert_allclose(plain, [0, 5 / 14, 13 / 14, 1.5, 2 + 2 / 7, 2 + 18 / 7, 6], atol=1e-6)
