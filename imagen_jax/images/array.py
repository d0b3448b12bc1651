"""Sizes and dtypes of images: integers of 8 or 16 bits in files and data, float32 in [-1, 1] in networks."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.errors import ConfigError

Size = tuple[int, int]  # (height, width)
IMAGE_DTYPES: dict[int, np.dtype] = {8: np.dtype(np.uint8), 16: np.dtype(np.uint16)}  # by bits per channel


def parse_size(value: Any, name: str) -> Size:
    """Returns (height, width) from a config's value: a pair, or one integer for a square.

    Args:
        value: the value.
        name: its name in error messages.

    Raises:
        ConfigError: the value is neither an integer nor a pair of integers.
    """
    sides = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if len(sides) not in (1, 2) or not all(isinstance(side, SupportsIndex) for side in sides):
        raise ConfigError(f"{name} {value!r} is not an integer, for a square, or a pair (height, width) of integers")
    return operator.index(sides[0]), operator.index(sides[-1])


def format_size(size: Size) -> str:
    """Returns a size for messages: "64" for a square, "48×64" otherwise."""
    height, width = size
    return f"{height}" if height == width else f"{height}×{width}"


def format_height_width(size: Size) -> str:
    """Returns a size for messages, always with both sides: "64×64"."""
    return "×".join(map(str, size))


def scale_size(part: Sequence[int], before: Size, after: Size) -> Size:
    """Returns the (height, width) of a part of an image after the full image is resized from `before` to `after`."""
    height, width = (side * new // old for side, old, new in zip(part, before, after, strict=True))
    return height, width


def image_dtype(bits: Any, name: str) -> np.dtype:
    """Returns the dtype of images with 8 or 16 bits per channel. Raises ConfigError, which starts with the name."""
    if bits not in IMAGE_DTYPES:
        raise ConfigError(f"{name} {bits!r} is not known: choose 8 or 16")
    return IMAGE_DTYPES[bits]


def to_float(images: jax.Array) -> jax.Array:
    """Returns uint8 or uint16 images as float32 in [-1, 1], of the same shape."""
    return images.astype(jnp.float32) / (jnp.iinfo(images.dtype).max / 2) - 1.0


def to_uint(images: np.ndarray | jax.Array, dtype: np.dtype) -> jax.Array:
    """Returns images in [-1, 1] as uint8 or uint16, clipped and rounded, of the same shape."""
    highest = np.iinfo(dtype).max
    return jnp.clip(jnp.round((jnp.asarray(images) + 1.0) * (highest / 2)), 0, highest).astype(dtype)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Returns uint8 or uint16 images as uint8, rounded, of the same shape."""
    return images if images.dtype == np.uint8 else np.round(images / 257.0).astype(np.uint8)


def alpha_composite(images: np.ndarray, background: np.ndarray | int) -> np.ndarray:
    """Returns RGBA images, uint8 [..., 4], over a background that broadcasts to [..., 3], as uint8 [..., 3]."""
    alpha = images[..., 3:] / 255.0
    return np.round(images[..., :3] * alpha + background * (1 - alpha)).astype(np.uint8)
