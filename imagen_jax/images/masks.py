"""Masks of pixels to draw anew, [..., H, W, 1] in [0, 1]: to smaller sizes, and with soft borders."""

from __future__ import annotations

import numpy as np

from imagen_jax.images.array import Size


def shrink_mask(mask: np.ndarray, size: Size) -> np.ndarray:
    """Returns a mask [N, H, W, 1] at a smaller (height, width): the highest value of what each pixel covers.

    So no pixel that is kept at the smaller size shows anything of what is to be drawn anew.
    """
    for axis, new in enumerate(size, start=1):
        old = mask.shape[axis]
        starts = np.arange(new) * old // new
        ends = -(-(np.arange(new) + 1) * old // new)
        parts = [
            mask.take(range(start, end), axis).max(axis, keepdims=True) for start, end in zip(starts, ends, strict=True)
        ]
        mask = np.concatenate(parts, axis)
    return mask


def feather_mask(mask: np.ndarray, width: int) -> np.ndarray:
    """Returns a mask [N, H, W, 1] that rises from 0 at its border to its own value `width` pixels within.

    It is 0 wherever the mask is: pixels outside of the mask stay as they are.
    """
    inner, soft = mask, mask / (width + 1)
    for step in range(2, width + 2):
        inner = _erode(inner)
        soft = np.where(inner > 0, inner * step / (width + 1), soft)
    return soft.astype(mask.dtype)


def _erode(mask: np.ndarray) -> np.ndarray:
    """Returns the lowest value of each pixel and its four neighbors; beyond the image is no border."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    neighbors = [padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]]
    return np.minimum.reduce([mask, *neighbors])
