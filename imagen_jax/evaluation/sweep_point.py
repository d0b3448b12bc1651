"""The metrics of one point of a sweep: its images are judged and measured batch by batch, and not kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.evaluation.image_sets import without_alpha
from imagen_jax.evaluation.judges import Judge, ScoreCounts
from imagen_jax.evaluation.metric_set import MetricSet, Reference
from imagen_jax.evaluation.state_files import State, load_states, save_states


class JudgeState:
    """Counts of a judge, as a state of `state_files`.

    Args:
        judge: of the images.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge, self.counts, self.images = judge, ScoreCounts(judge), 0

    def update(self, first: int, images: np.ndarray, captions: Sequence[str]) -> None:
        """Adds a batch of images [B, H, W, C]; `first` is not used."""
        self.counts.update(images, captions)
        self.images += len(images)

    def merge(self, other: JudgeState) -> None:
        """Adds the images of another part."""
        self.counts.merge(other.counts)
        self.images += other.images

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the state, exactly."""
        return {"images": np.array(self.images), "counts": np.array(json.dumps(self.counts.to_json()))}

    def load_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the state by that of `to_arrays`. Raises ValueError."""
        self.images = int(arrays["images"])
        self.counts = ScoreCounts.from_json(self._judge, json.loads(arrays["counts"].item()))


class PointMetrics:
    """Alignment by a judge, and metrics by name, of a number of images.

    Args:
        judge: of the images; None for none.
        metrics: with their networks.
        num_images: of all.
    """

    def __init__(self, judge: Judge | None, metrics: MetricSet, num_images: int) -> None:
        self._metrics, self._stream = metrics, metrics.stream(num_images)
        self._judge = None if judge is None else JudgeState(judge)

    @property
    def images(self) -> int:
        """The number of images so far."""
        return self._stream.images

    def update(self, first: int, images: np.ndarray, captions: Sequence[str]) -> None:
        """Adds a batch of images [B, H, W, C] with their captions; `first` is the index of the first one."""
        if self._judge is not None:
            self._judge.update(first, images, captions)
        self._stream.update(first, without_alpha(images), captions)

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Writes the state to one file, atomically, with what identifies the images."""
        save_states(path, {**self._stream.identity(), **identity}, self._states())

    def load(self, path: Path, identity: Mapping[str, Any]) -> bool:
        """Replaces the state by that of a file, and returns whether there is one; see `state_files.load_states`."""
        return load_states(path, {**self._stream.identity(), **identity}, self._states())

    def _states(self) -> dict[str, State]:
        return self._stream.states() | ({} if self._judge is None else {"judge": self._judge})

    def result(self, reference: Reference) -> dict[str, Any]:
        """Returns `metrics`, rows by name with their `value`, and `scores`, the judge's table, as JSON."""
        rows = {name: figure.to_json() for name, figure in self._metrics.result(self._stream, reference).items()}
        if self._judge is None:
            return {"metrics": rows}
        scores = self._judge.counts.result()
        alignment = {"value": scores["all"]["rate"], **{key: scores["all"][key] for key in ("low", "high", "total")}}
        return {"metrics": {"alignment": alignment, **rows}, "scores": scores}
