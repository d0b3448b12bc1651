import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.tiling import _tile_starts_and_weights, check_tiles, tiled_predict
from imagen_jax.errors import ConfigError


def random_images(height, width):
    return jax.random.normal(jax.random.key(0), (2, height, width, 3))


@pytest.mark.parametrize("side, tile, overlap", [(40, 16, 4), (36, 16, 8), (24, 16, 2), (16, 16, 8), (64, 8, 4)])
def test_weights_sum_to_one(side, tile, overlap):
    starts, weights = _tile_starts_and_weights(side, tile, overlap)
    total = np.zeros(side)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + tile] += weight
        assert (weight > 0).all()
        # almost 0 where a tile ends inside the image
        if start > 0:
            assert weight[0] < 1 / overlap
        if start + tile < side:
            assert weight[-1] < 1 / overlap
    np.testing.assert_allclose(total, 1)
    assert (starts[0], starts[-1]) == (0, side - tile)
    assert (np.diff(starts) <= tile - overlap).all()


@pytest.mark.parametrize("size", [(40, 24), (16, 36), (16, 16)])
def test_pointwise_function_is_unchanged(size):
    images = random_images(*size), 2 + random_images(*size)
    predicted, nothing = tiled_predict(lambda a, b: (jnp.sin(a) + b, None), images, (16, 16), 4)
    np.testing.assert_allclose(predicted, jnp.sin(images[0]) + images[1], atol=1e-5)
    assert nothing is None


def test_tiles_are_crops_of_the_image():
    images, seen = random_images(24, 40), []

    def predict(tile):
        jax.debug.callback(lambda tile: seen.append(np.asarray(tile)), tile)
        return tile

    tiled_predict(predict, [images], (16, 24), 8)
    jax.effects_barrier()
    assert len(seen) == 4
    for tile in seen:
        assert any(
            np.array_equal(tile, images[:, row : row + 16, column : column + 24])
            for row in (0, 8)
            for column in (0, 16)
        )


def test_predictions_blend_smoothly():
    """Each tile predicts the mean of its columns' indices."""
    columns = jnp.broadcast_to(jnp.arange(40.0)[None, None, :, None], (1, 16, 40, 1))
    predicted = tiled_predict(lambda tile: jnp.full_like(tile, tile.mean()), [columns], (16, 16), 4)[0, 5, :, 0]
    np.testing.assert_allclose(predicted[:12], 7.5)
    np.testing.assert_allclose(predicted[28:], 31.5)
    steps = np.diff(predicted[11:17])
    assert (steps > 0).all()
    assert steps.max() < 0.4 * 12  # of the difference between the two tiles


@pytest.mark.parametrize(
    "tile, overlap, match",
    [
        ((16, 48), 8, r"tile_size 16×48 is not in \[1, 32×40\]"),
        ((-16, 16), 8, r"tile_size -16×16 is not in"),
        ((16, 16), 0, r"tile_overlap 0 is not in \[1, 8\]"),
        ((16, 24), 12, r"tile_overlap 12 is not in \[1, 8\]"),
        ((16, 18), 4, "tile_size 16×18 and tile_overlap 4 are not multiples of 4"),
        ((16, 16), 2, "tile_size 16 and tile_overlap 2 are not multiples of 4"),
    ],
)
def test_invalid_tiles_raise(tile, overlap, match):
    with pytest.raises(ConfigError, match=match):
        check_tiles((32, 40), tile, overlap, 4)


def test_valid_tiles():
    check_tiles((32, 40), (16, 24), 8, 4)
    check_tiles((32, 40), (32, 40), 4, 4)
