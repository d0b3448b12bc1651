"""What an image is, outside the networks: its size, as configs give it, and whole numbers of 8 or 16 bits.

Inside, images are float32 in [-1, 1].
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.errors import ConfigError

Size = tuple[int, int]  # (height, width)
DTYPES: dict[int, np.dtype] = {8: np.dtype(np.uint8), 16: np.dtype(np.uint16)}  # by bits


def size_of(value: Any, name: str) -> Size:
    """(height, width) of what a config says: a pair, or one number for a square.

    Raises UsageError, which begins with the name, for anything else.
    """
    sides = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if len(sides) not in (1, 2) or not all(isinstance(side, SupportsIndex) for side in sides):
        raise ConfigError(f"{name} {value!r} is not a whole number, for a square, nor a pair (height, width) of them")
    return operator.index(sides[0]), operator.index(sides[-1])


def said(size: Size) -> str:
    """A size in messages: "64" of a square, "48×64" of any other."""
    height, width = size
    return f"{height}" if height == width else f"{height}×{width}"


def in_pixels(size: Size) -> str:
    """The size of a picture in messages: "64×64"."""
    return "×".join(map(str, size))


def scaled(part: Sequence[int], before: Size, after: Size) -> Size:
    """The (height, width) that a part of an image has once the whole has come from one size to another."""
    height, width = (side * new // old for side, old, new in zip(part, before, after, strict=True))
    return height, width


def dtype_of(bits: Any, name: str) -> np.dtype:
    """The type of images of so many bits a channel. Raises UsageError, which begins with the name."""
    if bits not in DTYPES:
        raise ConfigError(f"{name} {bits!r} is not known: choose 8 or 16")
    return DTYPES[bits]


def to_float(images: jax.Array) -> jax.Array:
    """Images of 8 or 16 bits as float32 in [-1, 1]."""
    return images.astype(jnp.float32) / (jnp.iinfo(images.dtype).max / 2) - 1.0


def to_whole(images: np.ndarray | jax.Array, dtype: np.dtype) -> jax.Array:
    """Images in [-1, 1] as whole numbers of one of the DTYPES, clipped and rounded."""
    highest = np.iinfo(dtype).max
    return jnp.clip(jnp.round((jnp.asarray(images) + 1.0) * (highest / 2)), 0, highest).astype(dtype)


def to_8_bits(images: np.ndarray) -> np.ndarray:
    """Images of 8 or 16 bits as uint8, rounded, for what shows or judges them."""
    return images if images.dtype == np.uint8 else np.round(images / 257.0).astype(np.uint8)


def composite(images: np.ndarray, ground: np.ndarray | int) -> np.ndarray:
    """RGBA images, uint8 [..., 4], over a ground that broadcasts to [..., 3]: uint8 [..., 3]."""
    cover = images[..., 3:] / 255.0
    return np.round(images[..., :3] * cover + ground * (1 - cover)).astype(np.uint8)
