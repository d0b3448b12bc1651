"""Variations of images: what moves, what keeps its values, and what follows from the seed."""

import numpy as np
import pytest

from imagen_jax.images.variations import vary


def square(channels=3, dtype=np.uint8, side=40):
    """A red, or white, square of a quarter of each side in the middle of gray."""
    image = np.full((side, side, channels), np.iinfo(dtype).max // 2, dtype)
    middle = slice(3 * side // 8, 5 * side // 8)
    image[middle, middle] = 0
    image[middle, middle, 0] = np.iinfo(dtype).max
    return image


def center(image):
    """The center of what is not gray, and the root of its area, as shares of the side."""
    places = np.argwhere(
        np.abs(image.astype(float) - image[0, 0].astype(float)).max(-1) > np.iinfo(image.dtype).max / 8
    )
    return (places.mean(0) + 0.5) / len(image), len(places) ** 0.5 / len(image)


def test_objects_move_and_are_zoomed_within_bounds():
    rng = np.random.default_rng(0)
    centers, sizes = zip(*(center(vary(square(), rng)) for _ in range(40)), strict=True)
    offsets = np.array(centers) - 0.5
    assert 0.15 < np.abs(offsets).max() < 0.2 * 1.25 + 0.05
    assert 0.18 < min(sizes) < 0.22 and 0.28 < max(sizes) < 0.34
    assert np.abs(offsets.mean(0)).max() < 0.06


def test_hues_change_and_grays_stay():
    rng = np.random.default_rng(1)
    images = [vary(square(), rng) for _ in range(12)]
    colors = {tuple(image[tuple((center(image)[0] * 40).astype(int))] > 127) for image in images}
    assert len(colors) >= 5
    for image in images:
        assert np.all(image[0, 0] == 127)


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (4, np.uint8), (3, np.uint16), (1, np.uint16)])
def test_other_images(channels, dtype):
    image = square(channels, dtype)
    if channels == 4:
        image[..., 3] = 200
    one, same, other = (vary(image, np.random.default_rng(seed)) for seed in (2, 2, 3))
    assert one.shape == image.shape and one.dtype == dtype
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    if channels == 4:
        assert np.all(one[..., 3] == 200)
