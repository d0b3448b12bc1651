"""CLIP scores: how well images fit their texts, by the cosine of their unit vectors (arXiv:2104.08718).

Published numbers differ in the CLIP, in what precedes a text, and in a scale: a score is named with all three.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from imagen_jax.errors import ConfigError, unknown_name_error
from imagen_jax.evaluation.features import check_features


@dataclasses.dataclass(frozen=True)
class ScoreKind:
    """A way to make scores of cosines.

    Attributes:
        description: who has it.
        prefix: what precedes each text.
        scale: of the cosines.
        clips: "images" if the score of each image is at least 0, "mean" if that of all is, "" if none is.
    """

    description: str
    prefix: str = ""
    scale: float = 1.0
    clips: str = ""


SCORE_KINDS = {
    "cosine": ScoreKind("the mean cosine, as Imagen reports it"),
    "torchmetrics": ScoreKind("torchmetrics", scale=100.0, clips="mean"),
    "clip_s": ScoreKind("CLIP-S, arXiv:2104.08718", "A photo depicts ", 2.5, "images"),
    "gigagan": ScoreKind("the evaluation of GigaGAN", "A photo depicts "),
}


class ClipScoreResult(NamedTuple):
    """Mean of the scores of `images` images, and the standard error of the mean; NaN for one image."""

    mean: float
    standard_error: float
    images: int


class ClipScore:
    """The mean score of images so far; the state has three numbers.

    Args:
        kind: a name of `SCORE_KINDS`.

    Raises:
        ConfigError: there is no such kind.
    """

    def __init__(self, kind: str = "cosine") -> None:
        if kind not in SCORE_KINDS:
            raise unknown_name_error("CLIP score", kind, SCORE_KINDS)
        self.kind = SCORE_KINDS[kind]
        self.images, self._mean, self._squares = 0, 0.0, 0.0

    def prompts(self, texts: Sequence[str]) -> list[str]:
        """Returns texts as CLIP has to read them."""
        return [self.kind.prefix + text for text in texts]

    def update(self, first: int, images: np.ndarray, texts: np.ndarray) -> None:
        """Adds a batch.

        Args:
            first: the index of its first image, for messages.
            images: embeddings of images float [B, D], as `text.clip.CLIP` returns them.
            texts: of `prompts` of their texts, [B, D].

        Raises:
            ConfigError: they have other shapes, or are not finite.
        """
        scores = self.each(images, texts, first)
        batch = ClipScore()
        batch.images = len(scores)
        batch._mean = float(scores.mean()) if len(scores) else 0.0
        batch._squares = float(((scores - batch._mean) ** 2).sum())
        self._add(batch)

    def each(self, images: np.ndarray, texts: np.ndarray, first: int = 0) -> np.ndarray:
        """Returns the score float64 [B] of each image; arguments and errors are those of `update`."""
        for name, values in (("embeddings of images", images), ("embeddings of texts", texts)):
            check_features(values, name, least=0, first=first)
        if images.shape != texts.shape:
            raise ConfigError(f"images have embeddings {list(images.shape)}, and texts {list(texts.shape)}")
        scores = self.kind.scale * _cosines(images.astype(np.float64), texts.astype(np.float64))
        if self.kind.clips == "images":
            scores = np.maximum(scores, 0)
        return scores

    def merge(self, other: ClipScore) -> None:
        """Adds other images. Raises ConfigError for scores of another kind."""
        if other.kind != self.kind:
            raise ConfigError("CLIP scores of different kinds cannot be merged")
        self._add(other)

    def _add(self, other: ClipScore) -> None:
        """Adds mean and squares of other images (Chan, Golub and LeVeque, 1979)."""
        images = self.images + other.images
        if other.images:
            difference = other._mean - self._mean
            self._squares += other._squares + difference**2 * self.images * other.images / images
            self._mean += difference * other.images / images
            self.images = images

    def result(self) -> ClipScoreResult:
        """Returns mean and standard error. Raises ConfigError if there are no images."""
        if not self.images:
            raise ConfigError("a CLIP score of no images has no mean: give at least 1")
        error = math.sqrt(self._squares / (self.images - 1) / self.images) if self.images > 1 else math.nan
        mean = max(self._mean, 0.0) if self.kind.clips == "mean" else self._mean
        return ClipScoreResult(mean, error, self.images)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the state, exactly."""
        return {"images": np.array(self.images), "moments": np.array([self._mean, self._squares])}

    def load_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the state by that of `to_arrays`. Raises ValueError."""
        self.images = int(arrays["images"])
        self._mean, self._squares = map(float, arrays["moments"])


def _cosines(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Returns the cosine [B] of each image and its text."""
    norms = np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1)
    return (images * texts).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
