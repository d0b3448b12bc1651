"""Tiled prediction: runs a network on overlapping tiles of images that are too large for it, and blends the results.

Overlapping tile predictions are averaged at each step of sampling (MultiDiffusion, arXiv:2302.08113). Weights decrease
towards the borders of a tile, where the network sees padding instead of the image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size, format_size


def check_tiles(size: Size, tile: Size, overlap: int, multiple: int) -> None:
    """Checks that images can be assembled from tiles that a network accepts.

    Args:
        size: (height, width) of the images.
        tile: (height, width) of the tiles.
        overlap: pixels that neighboring tiles share.
        multiple: the network accepts sides that are multiples of it. Tiles have to start at multiples too, because the
            network is equivariant only to such shifts.

    Raises:
        ConfigError: tiles of that size or overlap are not possible.
    """
    if not all(0 < tile_side <= side for tile_side, side in zip(tile, size, strict=True)):
        raise ConfigError(
            f"tile_size {format_size(tile)} is not in [1, {format_size(size)}]: a tile is part of an image; "
            "0 turns tiling off"
        )
    if not 0 < 2 * overlap <= min(tile):
        raise ConfigError(
            f"tile_overlap {overlap} is not in [1, {min(tile) // 2}]: without overlap, tiles leave seams; "
            "with more than half, more than two tiles overlap"
        )
    if any(side % multiple for side in (*tile, overlap)):
        raise ConfigError(
            f"tile_size {format_size(tile)} and tile_overlap {overlap} are not multiples of {multiple}: the network "
            "requires them"
        )


def tiled_predict(predict: Callable[..., Any], images: Sequence[jax.Array], tile: Size, overlap: int) -> Any:
    """Returns blended predictions for the tiles of images; tiles are processed one after another.

    Args:
        predict: tiles [B, h, w, C], one for each of `images` → a pytree of arrays [B, h, w, C].
        images: [B, H, W, C] each, of one size.
        tile: (h, w).
        overlap: pixels that neighboring tiles share, see `check_tiles`.

    Returns:
        The pytree, with arrays [B, H, W, C].
    """
    size = images[0].shape[1:3]
    rows, columns = (
        _tile_starts_and_weights(side, tile_side, overlap) for side, tile_side in zip(size, tile, strict=True)
    )
    starts = jnp.array(list(itertools.product(rows[0], columns[0])))
    windows = jnp.array([np.outer(row, column) for row, column in itertools.product(rows[1], columns[1])], jnp.float32)

    def crop(image: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (0, *start, 0), (image.shape[0], *tile, image.shape[3]))

    def add_tile(total: jax.Array, prediction: jax.Array, start: jax.Array, window: jax.Array) -> jax.Array:
        updated = crop(total, start) + prediction * window[..., None]
        return jax.lax.dynamic_update_slice(total, updated, (0, *start, 0))

    def step(totals: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        start, window = inputs
        predictions = predict(*(crop(image, start) for image in images))
        return jax.tree.map(lambda total, part: add_tile(total, part, start, window), totals, predictions), None

    shapes = jax.eval_shape(lambda *images: predict(*(crop(image, starts[0]) for image in images)), *images)
    zeros = jax.tree.map(lambda part: jnp.zeros((part.shape[0], *size, part.shape[3]), part.dtype), shapes)
    return jax.lax.scan(step, zeros, (starts, windows))[0]


def _tile_starts_and_weights(side: int, tile: int, overlap: int) -> tuple[list[int], list[np.ndarray]]:
    """Returns the first pixel of each tile along one axis, and the weights [tile] of its pixels.

    Weights of overlapping tiles sum to 1 at each pixel, and rise from 0 at a border like a squared sine. The last tile
    ends at the image's border, and may overlap more.
    """
    starts = [*range(0, side - tile, tile - overlap), side - tile]
    depth = np.minimum(np.arange(tile) + 0.5, tile - np.arange(tile) - 0.5)
    window = np.sin(np.pi / 2 * np.minimum(depth / overlap, 1)) ** 2
    total = np.zeros(side)
    for start in starts:
        total[start : start + tile] += window
    return starts, [window / total[start : start + tile] for start in starts]
