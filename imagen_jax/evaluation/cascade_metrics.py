"""Metrics of a cascade's images that need no reference: consistency between stages, color drift, saturation.

Images are uint8 or uint16 [N, H, W, C]; values are compared on the scale [0, 255].
"""

from __future__ import annotations

from functools import partial

import jax
import numpy as np

from imagen_jax.images.resize import resize

# Mean squared error of rounding to 8 bits: the consistency is limited by it.
ROUNDING_MSE = 1 / 12
CHANNELS = {1: ("gray",), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}


def _to_uint8_scale(images: np.ndarray) -> np.ndarray:
    """Returns integer images of 8 or 16 bits as float32 in [0, 255]."""
    return images.astype(np.float32) * np.float32(255 / np.iinfo(images.dtype).max)


def _channel_names(count: int) -> tuple[str, ...]:
    """Returns the names of an image's channels."""
    return CHANNELS.get(count) or tuple(f"channel_{i}" for i in range(count))


@partial(jax.jit, static_argnames=("height", "width"))
def _downsample(image: jax.Array, height: int, width: int) -> jax.Array:
    """Returns an image [H, W, C] downsampled like the low-resolution inputs of training."""
    return resize(image[None], height, width)[0]


def consistency(images: np.ndarray, low_res: np.ndarray) -> np.ndarray:
    """Returns the PSNR [N] in dB of downsampled images against the low-resolution images that they were sampled from.

    The maximum is 58.9 dB, the PSNR of rounding.

    Args:
        images: super-resolved images [N, H, W, C].
        low_res: their low-resolution inputs [N, h, w, C].
    """
    _, height, width, _ = low_res.shape
    # one image at a time: as floats, all of them would take four times their memory
    errors = [
        np.mean((np.asarray(_downsample(_to_uint8_scale(image), height, width)) - _to_uint8_scale(small)) ** 2)
        for image, small in zip(images, low_res, strict=True)
    ]
    return 10 * np.log10(255**2 / np.maximum(errors, ROUNDING_MSE))


def color_drift(images: np.ndarray, low_res: np.ndarray) -> np.ndarray:
    """Returns the mean color of each image minus that of its low-resolution input, [N, C], on the scale [0, 255]."""
    # means of integers in float64 are exact
    means = (batch.mean(axis=(1, 2)) * (255 / np.iinfo(batch.dtype).max) for batch in (images, low_res))
    return np.subtract(*means)


def saturation(images: np.ndarray) -> float:
    """Returns the fraction of values at either end of the range; in samples, most of these were clipped."""
    return float(np.mean((images == 0) | (images == np.iinfo(images.dtype).max)))


def compute_metrics(images: np.ndarray, low_res: np.ndarray | None, real: np.ndarray) -> dict[str, float]:
    """Returns the means of all metrics by name.

    `saturation_real` is the saturation of real images, the target of `saturation`. `color_drift/rms` is the root mean
    square over images and channels: tints that differ between images show in it alone.

    Args:
        images: samples of a stage [N, H, W, C].
        low_res: their low-resolution inputs [N, h, w, C]; None for a base stage, which has only saturations.
        real: images of the data set [M, H, W, C].
    """
    metrics = {"saturation": saturation(images), "saturation_real": saturation(real)}
    if low_res is not None:
        metrics["consistency_db"] = float(consistency(images, low_res).mean())
        drift = color_drift(images, low_res)
        for name, mean in zip(_channel_names(drift.shape[1]), drift.mean(axis=0), strict=True):
            metrics[f"color_drift/{name}"] = float(mean)
        metrics["color_drift/rms"] = float(np.sqrt(np.mean(drift**2)))
    return metrics
