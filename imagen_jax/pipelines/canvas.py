"""Where the pixels of a canvas that is larger than the images of training are, for a network that embeds positions."""

from __future__ import annotations

import numpy as np

from imagen_jax.images.array import Size


def canvas_positions(count: int, canvas: Size, trained: Size, before: Size, after: Size) -> dict[str, np.ndarray]:
    """Returns the positions of rows [count, H] and columns [count, W] of outpainted images, see `axis_positions`.

    Args:
        count: of images, all alike.
        canvas: (height, width) in pixels.
        trained: likewise, of the images of training.
        before: new pixels (above, left) of what is given.
        after: new pixels (below, right) of it.
    """
    rows, columns = (axis_positions(*axis) for axis in zip(canvas, trained, before, after, strict=True))
    return {"row_positions": np.repeat(rows[None], count, 0), "column_positions": np.repeat(columns[None], count, 0)}


def axis_positions(side: int, trained: int, before: int, after: int) -> np.ndarray:
    """Returns where the pixels of one axis are in images of training, float32 [side] in [0, 1], ascending.

    Evenly spread positions are farther apart in training than on a larger canvas, and objects at them get wider.
    Here, both halves of the trained image keep their scale: each is in the middle of the new part on its own side, or,
    if that is narrower than the half, at the edge of the canvas. Between and beyond them positions hold still.

    Args:
        side: pixels of the canvas. If it is not larger than `trained`, pixels are spread evenly.
        trained: pixels of the images of training.
        before: new pixels before what is given.
        after: new pixels after it.
    """
    centers = np.arange(side, dtype=np.float32) + 0.5
    if side <= trained:
        return centers / side
    half = trained / 2
    first = min(max((before - half) / 2, 0), side - trained)
    second = max(side - half - max((after - half) / 2, 0), first + half)
    return (np.clip(centers - first, 0, half) + np.clip(centers - second, 0, half)) / trained
