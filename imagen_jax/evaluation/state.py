"""What an evaluation knows of the images so far: sums and counts, whose size does not grow with their number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from imagen_jax.evaluation.cascade_metrics import StageMetrics
from imagen_jax.evaluation.judges import Judge, ScoreCounts

MAX_GRID_IMAGES = 32


class EvaluationState:
    """Metrics of each stage, counts of the judge, and which images the grids show.

    Args:
        num_stages: of the cascade.
        judge: of the last stage's images; without one, all count as correct.
    """

    def __init__(self, num_stages: int, judge: Judge | None) -> None:
        self.stages = [StageMetrics() for _ in range(num_stages)]
        self.counts = None if judge is None else ScoreCounts(judge)
        self.correct: list[int] = []  # indices of the first MAX_GRID_IMAGES
        self.incorrect: list[int] = []

    @property
    def images(self) -> int:
        """The number of images."""
        return self.stages[0].images

    def update(self, first: int, by_stage: Sequence[np.ndarray], captions: Sequence[str]) -> None:
        """Adds a batch.

        Args:
            first: index of its first image.
            by_stage: images of each stage [B, H, W, C].
            captions: of the images.
        """
        for metrics, images, low_res in zip(self.stages, by_stage, [None, *by_stage[:-1]], strict=True):
            metrics.update(images, low_res)
        correct = np.ones(len(captions), bool)
        if self.counts is not None:
            correct = self.counts.update(by_stage[-1], captions)
        self._show((first + np.flatnonzero(correct)).tolist(), (first + np.flatnonzero(~correct)).tolist())

    def merge(self, other: EvaluationState) -> None:
        """Adds the images of another part, which may come from another host."""
        for metrics, others in zip(self.stages, other.stages, strict=True):
            metrics.merge(others)
        if self.counts is not None and other.counts is not None:
            self.counts.merge(other.counts)
        self._show(other.correct, other.incorrect)

    def _show(self, correct: list[int], incorrect: list[int]) -> None:
        self.correct = sorted([*self.correct, *correct])[:MAX_GRID_IMAGES]
        self.incorrect = sorted([*self.incorrect, *incorrect])[:MAX_GRID_IMAGES]

    def to_json(self) -> dict[str, Any]:
        """Returns the state as a JSON value, exactly."""
        return {
            "images": self.images,
            "stages": [metrics.to_json() for metrics in self.stages],
            "counts": None if self.counts is None else self.counts.to_json(),
            "correct": self.correct,
            "incorrect": self.incorrect,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], judge: Judge | None) -> EvaluationState:
        """Returns the state of `to_json`. Raises KeyError, TypeError or ValueError if it is not one."""
        state = cls(len(value["stages"]), judge)
        state.stages = [StageMetrics.from_json(metrics) for metrics in value["stages"]]
        if judge is not None:
            state.counts = ScoreCounts.from_json(judge, value["counts"])
        state.correct, state.incorrect = list(value["correct"]), list(value["incorrect"])
        return state
