import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.tiling import check_tiles, cuts, in_tiles
from imagen_jax.errors import ConfigError


def some_images(height, width):
    return jax.random.normal(jax.random.key(0), (2, height, width, 3))


@pytest.mark.parametrize("whole, side, overlap", [(40, 16, 4), (36, 16, 8), (24, 16, 2), (16, 16, 8), (64, 8, 4)])
def test_all_that_lies_over_a_pixel_counts_1(whole, side, overlap):
    starts, counts = cuts(whole, side, overlap)
    total = np.zeros(whole)
    for start, count in zip(starts, counts, strict=True):
        total[start : start + side] += count
        assert (count > 0).all()
        # next to nothing where a tile ends within the image
        if start > 0:
            assert count[0] < 1 / overlap
        if start + side < whole:
            assert count[-1] < 1 / overlap
    np.testing.assert_allclose(total, 1)
    assert (starts[0], starts[-1]) == (0, whole - side)
    assert (np.diff(starts) <= side - overlap).all()


@pytest.mark.parametrize("size", [(40, 24), (16, 36), (16, 16)])
def test_what_is_said_of_each_pixel_by_itself_is_said_in_tiles_too(size):
    images = some_images(*size), 2 + some_images(*size)
    found, nothing = in_tiles(lambda a, b: (jnp.sin(a) + b, None), images, (16, 16), 4)
    np.testing.assert_allclose(found, jnp.sin(images[0]) + images[1], atol=1e-5)
    assert nothing is None


def test_a_tile_is_seen_whole_and_as_it_is():
    images, seen = some_images(24, 40), []

    def predict(tile):
        jax.debug.callback(lambda tile: seen.append(np.asarray(tile)), tile)
        return tile

    in_tiles(predict, [images], (16, 24), 8)
    jax.effects_barrier()
    assert len(seen) == 4
    for tile in seen:
        assert any(
            np.array_equal(tile, images[:, row : row + 16, column : column + 24])
            for row in (0, 8)
            for column in (0, 16)
        )


def test_between_tiles_what_is_said_goes_over_from_one_to_the_other_smoothly():
    """Each tile says its mean of where its pixels are."""
    places = jnp.broadcast_to(jnp.arange(40.0)[None, None, :, None], (1, 16, 40, 1))
    found = in_tiles(lambda tile: jnp.full_like(tile, tile.mean()), [places], (16, 16), 4)[0, 5, :, 0]
    np.testing.assert_allclose(found[:12], 7.5)
    np.testing.assert_allclose(found[28:], 31.5)
    steps = np.diff(found[11:17])
    assert (steps > 0).all()
    assert steps.max() < 0.4 * 12  # of what parts the two tiles


@pytest.mark.parametrize(
    "tile, overlap, said",
    [
        ((16, 48), 8, r"tile_size 16×48 is not in \[1, 32×40\]: a tile is part of an image; 0 draws it whole"),
        ((-16, 16), 8, r"tile_size -16×16 is not in"),
        ((16, 16), 0, r"tile_overlap 0 is not in \[1, 8\]: tiles of 16 that do not overlap leave seams"),
        ((16, 24), 12, r"tile_overlap 12 is not in \[1, 8\]"),
        ((16, 18), 4, "tile_size 16×18 and tile_overlap 4 are not multiples of 4, as the network needs"),
        ((16, 16), 2, "tile_size 16 and tile_overlap 2 are not multiples of 4"),
    ],
)
def test_tiles_that_cannot_work_are_refused(tile, overlap, said):
    with pytest.raises(ConfigError, match=said):
        check_tiles((32, 40), tile, overlap, 4)


def test_tiles_that_work_are_let_through():
    check_tiles((32, 40), (16, 24), 8, 4)
    check_tiles((32, 40), (32, 40), 4, 4)
