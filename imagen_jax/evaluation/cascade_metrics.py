"""Metrics of a cascade's images that need no reference: consistency between stages, color drift, saturation.

Images are uint8 or uint16 [N, H, W, C]; values are compared on the scale [0, 255].
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from functools import partial
from typing import Any

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
    return _count_saturated(images) / images.size


def _count_saturated(images: np.ndarray) -> int:
    """Returns the number of values at either end of the range."""
    return int(np.count_nonzero((images == 0) | (images == np.iinfo(images.dtype).max)))


@dataclasses.dataclass
class StageMetrics:
    """Sums over the samples of a stage, from which their metrics follow; its size does not depend on their number.

    Attributes:
        images: number of samples.
        saturated: values at either end of the range.
        values: number of values.
        consistency: sum of the consistencies in dB; 0 for a base stage.
        drift: sums of the color drifts by channel; [] for a base stage.
        squared_drift: sum of the squared color drifts over images and channels; 0 for a base stage.
    """

    images: int = 0
    saturated: int = 0
    values: int = 0
    consistency: float = 0.0
    drift: list[float] = dataclasses.field(default_factory=list)
    squared_drift: float = 0.0

    def update(self, images: np.ndarray, low_res: np.ndarray | None) -> None:
        """Adds a batch of samples [B, H, W, C] with their low-resolution inputs [B, h, w, C], None for a base stage."""
        batch = StageMetrics(len(images), _count_saturated(images), images.size)
        if low_res is not None:
            drift = color_drift(images, low_res)
            batch.consistency = float(consistency(images, low_res).sum(dtype=np.float64))
            batch.drift = drift.sum(axis=0).tolist()
            batch.squared_drift = float(np.sum(drift**2))
        self.merge(batch)

    def merge(self, other: StageMetrics) -> None:
        """Adds the sums over other samples of the same stage."""
        self.images += other.images
        self.saturated += other.saturated
        self.values += other.values
        self.consistency += other.consistency
        self.drift = [a + b for a, b in itertools.zip_longest(self.drift, other.drift, fillvalue=0.0)]
        self.squared_drift += other.squared_drift

    def result(self) -> dict[str, float]:
        """Returns the means of all metrics by name, see `compute_metrics`; but not `saturation_real`."""
        metrics = {"saturation": self.saturated / self.values}
        if self.drift:
            metrics["consistency_db"] = self.consistency / self.images
            for name, total in zip(_channel_names(len(self.drift)), self.drift, strict=True):
                metrics[f"color_drift/{name}"] = total / self.images
            metrics["color_drift/rms"] = math.sqrt(self.squared_drift / (self.images * len(self.drift)))
        return metrics

    def to_json(self) -> dict[str, Any]:
        """Returns the sums as a JSON value, exactly."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> StageMetrics:
        """Returns the metrics of `to_json`."""
        return cls(**value)


def with_real(metrics: dict[str, float], real: np.ndarray) -> dict[str, float]:
    """Returns metrics with `saturation_real`, the saturation of real images [M, H, W, C], after `saturation`."""
    return {"saturation": metrics["saturation"], "saturation_real": saturation(real), **metrics}


def compute_metrics(images: np.ndarray, low_res: np.ndarray | None, real: np.ndarray) -> dict[str, float]:
    """Returns the means of all metrics by name.

    `saturation_real` is the saturation of real images, the target of `saturation`. `color_drift/rms` is the root mean
    square over images and channels: tints that differ between images show in it alone.

    Args:
        images: samples of a stage [N, H, W, C].
        low_res: their low-resolution inputs [N, h, w, C]; None for a base stage, which has only saturations.
        real: images of the data set [M, H, W, C].
    """
    metrics = StageMetrics()
    metrics.update(images, low_res)
    return with_real(metrics.result(), real)
