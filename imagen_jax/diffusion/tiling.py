"""Images that are seen tile by tile, by a network that could not hold them whole, and put together without seams.

At every step of sampling, what is said of the overlapping tiles is averaged, so that all tiles walk down together to
one image (MultiDiffusion, arXiv:2302.08113). A tile counts for less towards its borders, where the network sees padding
in the place of what lies beyond.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size, said


def check_tiles(size: Size, tile: Size, overlap: int, multiple: int) -> None:
    """Raises UsageError unless images of a size can be put together from tiles that a network takes.

    Args:
        size: of the images.
        tile: of the tiles.
        overlap: pixels that neighbours share.
        multiple: what sides that the network takes are multiples of; tiles that begin at other places would be another
            image to it.
    """
    if not all(0 < side <= whole for side, whole in zip(tile, size, strict=True)):
        raise ConfigError(
            f"tile_size {said(tile)} is not in [1, {said(size)}]: a tile is part of an image; 0 draws it whole"
        )
    if not 0 < 2 * overlap <= min(tile):
        raise ConfigError(
            f"tile_overlap {overlap} is not in [1, {min(tile) // 2}]: tiles of {said(tile)} that do not overlap leave "
            "seams, and by more than half they overlap twice"
        )
    if any(side % multiple for side in (*tile, overlap)):
        raise ConfigError(
            f"tile_size {said(tile)} and tile_overlap {overlap} are not multiples of {multiple}, as the network needs"
        )


def in_tiles(predict: Callable[..., Any], images: Sequence[jax.Array], tile: Size, overlap: int) -> Any:
    """What ``predict`` says of images, from what it says of their tiles, one tile at a time.

    Args:
        predict: images [B, h, w, C] of tiles → a tree of arrays [B, h, w, C].
        images: [B, H, W, C] each, of one size.
        tile: (h, w).
        overlap: pixels that neighbours share; as of ``check_tiles``.

    Returns:
        The tree, of [B, H, W, C].
    """
    rows, columns = (cuts(whole, side, overlap) for whole, side in zip(images[0].shape[1:3], tile, strict=True))
    places = jnp.array(list(itertools.product(rows[0], columns[0])))
    windows = jnp.array([np.outer(row, column) for row, column in itertools.product(rows[1], columns[1])], jnp.float32)

    def cut(image: jax.Array, place: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (0, *place, 0), (image.shape[0], *tile, image.shape[3]))

    def paste(whole: jax.Array, part: jax.Array, place: jax.Array, window: jax.Array) -> jax.Array:
        sums = cut(whole, place) + part * window[..., None]
        return jax.lax.dynamic_update_slice(whole, sums, (0, *place, 0))

    def add(wholes: Any, now: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        place, window = now
        parts = predict(*(cut(image, place) for image in images))
        return jax.tree.map(lambda whole, part: paste(whole, part, place, window), wholes, parts), None

    size = images[0].shape[1:3]
    of_tile = jax.eval_shape(lambda *images: predict(*(cut(image, places[0]) for image in images)), *images)
    empty = jax.tree.map(lambda part: jnp.zeros((part.shape[0], *size, part.shape[3]), part.dtype), of_tile)
    return jax.lax.scan(add, empty, (places, windows))[0]


def cuts(whole: int, side: int, overlap: int) -> tuple[list[int], list[np.ndarray]]:
    """(where tiles begin along one axis of an image, what their pixels count), so that all that overlap count 1.

    The last tile ends with the image, and may overlap more. Counts rise from 0 at a border as a squared sine does.
    """
    starts = [*range(0, whole - side, side - overlap), whole - side]
    depth = np.minimum(np.arange(side) + 0.5, side - np.arange(side) - 0.5)
    window = np.sin(np.pi / 2 * np.minimum(depth / overlap, 1)) ** 2
    total = np.zeros(whole)
    for start in starts:
        total[start : start + side] += window
    return starts, [window / total[start : start + side] for start in starts]
