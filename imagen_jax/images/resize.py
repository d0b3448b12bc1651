"""Resizing of images by the stages of a cascade, on the device, the same in training and in sampling."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def resize(images: jax.Array, height: int, width: int, align_corners: bool = False) -> jax.Array:
    """Images [B, H, W, C] at another size: bilinear, antialiased where they shrink.

    As pixels have an extent, the edges of both images lie over each other. With ``align_corners`` the middles of their
    outermost pixels do instead, as networks were trained that resize so (DeepFloyd IF's); images and results then have
    at least 2 pixels each way.
    """
    batch, *before, channels = images.shape
    shape = batch, height, width, channels
    if not align_corners:
        return jax.image.resize(images, shape, "bilinear", antialias=True)
    scale = jnp.array([(new - 1) / (old - 1) for new, old in zip((height, width), before, strict=True)])
    # places count from the edge of the first pixel, whose middle, at 1/2, stays where it is
    return jax.image.scale_and_translate(images, shape, (1, 2), scale, (1 - scale) / 2, "bilinear", antialias=True)
