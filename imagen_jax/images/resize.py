"""Resizing of images on the device, the same in training and in sampling."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def resize(images: jax.Array, height: int, width: int, align_corners: bool = False) -> jax.Array:
    """Returns images [B, H, W, C] resized to [B, height, width, C]: bilinear, with antialiasing when downsampling.

    Args:
        images: [B, H, W, C].
        height: height of the result.
        width: width of the result.
        align_corners: whether to align the centers of the corner pixels instead of the image borders, as DeepFloyd IF
            does; all sides must then be at least 2.
    """
    batch, *sides, channels = images.shape
    shape = batch, height, width, channels
    if not align_corners:
        return jax.image.resize(images, shape, "bilinear", antialias=True)
    scale = jnp.array([(new - 1) / (old - 1) for new, old in zip((height, width), sides, strict=True)])
    # coordinates count from the border of the first pixel, whose center at 1/2 is fixed
    return jax.image.scale_and_translate(images, shape, (1, 2), scale, (1 - scale) / 2, "bilinear", antialias=True)
