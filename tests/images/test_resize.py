import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.images.resize import resize


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)


@pytest.mark.parametrize("size", [4, 16])
def test_sizes_and_range(images, size):
    resized = resize(images, size, size)
    assert resized.shape == (2, size, size, 3)
    assert np.abs(resized).max() <= 1 + 1e-6  # bilinear never overshoots


def test_the_same_size_changes_nothing(images):
    np.testing.assert_allclose(resize(images, 8, 8), images, atol=1e-6)


@pytest.mark.parametrize("size", [4, 16])
def test_a_plain_image_stays_plain_to_its_edges(size):
    np.testing.assert_allclose(resize(jnp.full((1, 8, 8, 1), 0.3), size, size), 0.3, rtol=1e-5)


@pytest.mark.parametrize("size", [4, 16])
def test_nothing_is_shifted(images, size):
    """Mirrored and then resized is resized and then mirrored: pixel centres stay where they are."""
    mirrored = resize(images[:, ::-1, ::-1], size, size)
    np.testing.assert_allclose(mirrored, resize(images, size, size)[:, ::-1, ::-1], atol=1e-5)


def test_examples_and_channels_do_not_mix(images):
    alone = resize(images[1:, :, :, 2:], 16, 16)
    np.testing.assert_allclose(resize(images, 16, 16)[1:, :, :, 2:], alone, atol=1e-6)


def test_shrinking_averages_what_is_too_fine_to_show():
    """Without antialiasing a chessboard shrinks to one of its two colours."""
    board = np.float32(np.indices((16, 16)).sum(0) % 2)[None, :, :, None]
    np.testing.assert_allclose(resize(board, 4, 4)[:, 1:3, 1:3], 0.5, atol=0.02)


def test_a_ramp_stays_a_ramp():
    columns = np.broadcast_to(np.arange(8, dtype=np.float32)[None, None, :, None], (1, 8, 8, 1))
    # half-pixel centres: column j of 16 lies at (j + 0.5) / 2 - 0.5 of 8
    expected = (np.arange(16) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(resize(columns, 8, 16)[0, 3, 1:-1, 0], expected[1:-1], atol=1e-5)


def on_a_line(values, places):
    """Values [H, W, C] at fractional rows, by straight lines between them."""
    below = np.clip(np.floor(places).astype(int), 0, len(values) - 2)
    share = (places - below)[:, None, None]
    return values[below] * (1 - share) + values[below + 1] * share


@pytest.mark.parametrize("height, width", [(16, 24), (15, 9), (8, 32)])
def test_aligned_corners_lie_over_each_other_and_what_is_between_them_at_equal_steps(images, height, width):
    """Row j of H is at j (h - 1) / (H - 1) of h."""
    found = resize(images, height, width, align_corners=True)
    for image, other in zip(images, found, strict=True):
        rows = on_a_line(image, np.arange(height) * 7 / (height - 1))
        expected = on_a_line(rows.swapaxes(0, 1), np.arange(width) * 7 / (width - 1)).swapaxes(0, 1)
        np.testing.assert_allclose(other, expected, atol=1e-5)
    np.testing.assert_allclose(
        found[:, [0, 0, -1, -1], [0, -1, 0, -1]], images[:, [0, 0, 7, 7], [0, 7, 0, 7]], atol=1e-5
    )


def test_aligned_corners_of_the_same_size_change_nothing(images):
    np.testing.assert_allclose(resize(images, 8, 8, align_corners=True), images, atol=1e-6)


def test_aligned_corners_by_hand():
    images = jnp.broadcast_to(jnp.array([0.0, 1.0, 2.0, 6.0])[None, None, :, None], (1, 2, 4, 1))
    aligned, plain = (resize(images, 2, 7, align_corners=on)[0, 1, :, 0] for on in (True, False))
    np.testing.assert_allclose(aligned, [0, 0.5, 1, 1.5, 2, 4, 6], atol=1e-6)
    # middles of pixels, at (j + 1/2) 4/7 - 1/2 of the four; beyond the first and the last what these are
    np.testing.assert_allclose(plain, [0, 5 / 14, 13 / 14, 1.5, 2 + 2 / 7, 2 + 18 / 7, 6], atol=1e-6)
