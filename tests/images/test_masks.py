"""Masks at smaller sizes, and with soft borders."""

import numpy as np
import pytest

from imagen_jax.images.masks import feather_mask, shrink_mask


def box(size, top, left, bottom, right):
    mask = np.zeros((1, *size, 1), np.float32)
    mask[:, top:bottom, left:right] = 1
    return mask


@pytest.mark.parametrize("new", [(4, 4), (3, 5), (8, 16), (1, 1)])
def test_no_kept_pixel_covers_what_is_drawn(new):
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = (rng.random((2, 8, 16, 1)) < 0.1).astype(np.float32)
        small = shrink_mask(mask, new)
        assert small.shape == (2, *new, 1)
        for row in range(new[0]):
            for column in range(new[1]):
                rows = slice(int(row * 8 / new[0]), int(np.ceil((row + 1) * 8 / new[0])))
                columns = slice(int(column * 16 / new[1]), int(np.ceil((column + 1) * 16 / new[1])))
                np.testing.assert_array_equal(small[:, row, column], mask[:, rows, columns].max((1, 2)))


def test_own_size_changes_nothing():
    mask = box((6, 6), 1, 2, 4, 5)
    np.testing.assert_array_equal(shrink_mask(mask, (6, 6)), mask)


@pytest.mark.parametrize("width", [0, 1, 3])
def test_feather_rises_within_the_mask_alone(width):
    mask = box((16, 16), 3, 3, 14, 14)
    soft = feather_mask(mask, width)
    assert np.all((soft == 0) == (mask == 0))
    middle = soft[0, 8, 3:9, 0]
    expected = np.minimum(np.arange(1, 7) / (width + 1), 1)
    np.testing.assert_allclose(middle, expected, rtol=1e-6)


def test_the_border_of_the_image_is_no_border_of_the_mask():
    soft = feather_mask(box((8, 8), 0, 0, 8, 4), 2)
    np.testing.assert_allclose(soft[0, 0, :4, 0], [1, 1, 2 / 3, 1 / 3], rtol=1e-6)
