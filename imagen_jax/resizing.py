"""Resizing of images by the stages of a cascade, on the device, the same in training and in sampling."""

from __future__ import annotations

import jax


def resize(images: jax.Array, height: int, width: int) -> jax.Array:
    """Images [B, H, W, C] at another size: bilinear, antialiased where they shrink."""
    batch, _, _, channels = images.shape
    return jax.image.resize(images, (batch, height, width, channels), "bilinear", antialias=True)
