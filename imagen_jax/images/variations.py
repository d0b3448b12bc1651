"""Variations of an image: zoomed, moved, and in another hue."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

_ZOOM, _MOVE, _SATURATION = (0.8, 1.25), 0.2, (0.6, 1.3)
# of each side, what such a part of an image may have beyond it: half of 1 / 0.8, and 0.2, less half an image
_BORDER = 0.5 / _ZOOM[0] + _MOVE - 0.5


def vary(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a variation of an image, of the same size; what is beyond its border continues the border.

    Args:
        image: uint8 or uint16 [H, W, C]; hues change in colors of 8 bits.
        rng: decides on zoom (0.8 to 1.25), movement (to 0.2 of the sides), hue (any) and saturation (0.6 to 1.3).
    """
    zoom, moves = rng.uniform(*_ZOOM), rng.uniform(-_MOVE, _MOVE, 2)
    turn, saturation = int(rng.integers(256)), rng.uniform(*_SATURATION)
    shape = image.shape
    border = [int(np.ceil(_BORDER * side)) for side in shape[:2]]
    padded = np.pad(image, [(side, side) for side in border] + [(0, 0)], mode="edge").astype(np.float32)
    # a pixel at p is at zoom · p + start: the center of the image, with the border, goes to that of the result, moved
    start = [
        side / 2 - zoom * (side * (0.5 + move) + extra)
        for side, move, extra in zip(shape[:2], moves, border, strict=True)
    ]
    moved = jax.image.scale_and_translate(
        padded, shape, (0, 1), jnp.full(2, zoom), jnp.asarray(start, jnp.float32), "cubic", antialias=True
    )
    highest = np.iinfo(image.dtype).max
    result = np.asarray(jnp.clip(jnp.round(moved), 0, highest)).astype(image.dtype)
    if shape[-1] < 3 or image.dtype != np.uint8:
        return result
    hsv = np.array(Image.fromarray(result[..., :3]).convert("HSV")).astype(np.int32)
    hsv[..., 0] = (hsv[..., 0] + turn) % 256
    hsv[..., 1] = np.clip(np.round(hsv[..., 1] * saturation), 0, 255)
    colors = np.asarray(Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB"))
    return np.concatenate([colors, result[..., 3:]], axis=-1)
