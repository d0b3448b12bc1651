"""Metrics of the samples of an evaluation: against its reference, and saved as it goes.

OUT/metrics.npz              the states of the metrics after some batch
OUT/reference-DIGEST.npz     those of the reference, which is measured first
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.config.schema import EvaluationConfig
from imagen_jax.evaluation.figures import CaptionsOrigin, Figure
from imagen_jax.evaluation.image_sets import ImageSet, without_alpha
from imagen_jax.evaluation.metric_set import MetricSet, Reference
from imagen_jax.evaluation.references import DataReference, SaveClock, measure_reference, open_reference
from imagen_jax.images.array import Size

STATES = "metrics.npz"


class SampleMetrics:
    """The metrics of an evaluation's samples; without any, everything does nothing.

    Args:
        config: with the metrics, their reference and the number of samples.
        size: (height, width) of the samples.
        channels: of the samples.
        captions: of the samples.
        out: the folder of the evaluation; None for none.

    Raises:
        ConfigError: weights are missing, the reference is not one, or there are too few images.
    """

    def __init__(
        self, config: EvaluationConfig, size: Size, channels: int, captions: CaptionsOrigin, out: Path | None
    ) -> None:
        self._captions, self._out = captions, out
        self._clock, self._identity = SaveClock(), captions._asdict()
        self.metrics: MetricSet | None = None
        self._reference: Reference | ImageSet | None = None
        if config.metrics.names:
            self.metrics = MetricSet.load(config.metrics)
            self._stream = self.metrics.stream(config.num_samples)
            if self.metrics.needs_reference:
                data = DataReference(config.data, config.data.split, size, channels, config.num_samples)
                self._reference = open_reference(self.metrics, config.metrics, data)

    def manifest(self) -> dict[str, Any]:
        """Returns what decides the states, as JSON; nothing without metrics. The reference is not part of it."""
        return {} if self.metrics is None else {"metrics": self.metrics.identity()}

    def measure_reference(self) -> None:
        """Measures the images of the reference, unless that was done before; all processes call it."""
        if self.metrics is not None and self._reference is not None and not isinstance(self._reference, Reference):
            self._reference = measure_reference(self.metrics, self._reference, self._out)

    @property
    def images(self) -> int | None:
        """The number of images so far; None without metrics."""
        return None if self.metrics is None else self._stream.images

    def load(self) -> None:
        """Replaces the states by those of the folder, if it has any; the main process calls it. Raises ConfigError."""
        if self.metrics is not None and self._out is not None:
            self._stream.load(self._out / STATES, self._identity)

    def restart(self) -> None:
        """Begins again without images."""
        if self.metrics is not None:
            self._stream = self.metrics.stream(self._stream.num_images)

    def update(self, first: int, images: np.ndarray, texts: Sequence[str]) -> None:
        """Adds a batch [B, H, W, C], in all processes; `first` is the index of its first image. Raises ConfigError."""
        if self.metrics is not None:
            self._stream.update(first, without_alpha(images), texts)

    def save(self) -> None:
        """Writes the states if it is due, or they are complete; the main process calls it. Raises OSError."""
        if self.metrics is not None and self._out is not None:
            file, is_complete = self._out / STATES, self._stream.images == self._stream.num_images
            self._clock.save(lambda: self._stream.save(file, self._identity), now=is_complete)

    def result(self) -> dict[str, Figure]:
        """Returns the figures of all samples, after `measure_reference`; none without metrics."""
        if self.metrics is None:
            return {}
        assert self._reference is None or isinstance(self._reference, Reference)
        return self.metrics.result(self._stream, self._reference, self._captions)


def scores_json(scores: Mapping[str, Any] | None, figures: Mapping[str, Figure]) -> dict[str, Any]:
    """Returns the content of scores.json: the rows of the judge, and under `metrics` the figures."""
    rows = {name: figure.to_json() for name, figure in figures.items()}
    return dict(scores or {}) | ({"metrics": rows} if rows else {})
