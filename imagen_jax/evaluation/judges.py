"""Alignment of images with their captions, scored by the judge of their data set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from imagen_jax.datasets.figures import captions as figures_captions
from imagen_jax.datasets.figures import judge as figures_judge
from imagen_jax.datasets.shapes import judge
from imagen_jax.datasets.shapes.captions import parse_caption
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import alpha_composite, to_uint8

Scores = dict[str, dict[str, float]]
Counts = dict[str, tuple[int, int]]  # of each row: correct, total


class Judge(Protocol):
    """Judges images one by one: `counts` of parts of them add up, see `ScoreCounts`."""

    def counts(self, images: np.ndarray, captions: Sequence[str]) -> tuple[Counts, np.ndarray]:
        """Returns (counts by row, whether each image is fully correct, bool [N]) for images [N, H, W, C]."""
        ...

    def scores(self, counts: Counts) -> Scores:
        """Returns the table of scores: the rows of `counts` in order, and rows that do not depend on the images."""
        ...

    def __call__(self, images: np.ndarray, captions: Sequence[str]) -> tuple[Scores, np.ndarray]:
        """Returns (scores by row, whether each image is fully correct, bool [N])."""
        ...


class _JudgeBase:
    """Scores all images at once by counting them."""

    def __call__(self: Judge, images: np.ndarray, captions: Sequence[str]) -> tuple[Scores, np.ndarray]:
        counts, correct = self.counts(images, captions)
        return self.scores(counts), correct


class _ShapesJudge(_JudgeBase):
    """Judges RGB images, or RGBA to be composited on white. Raises ConfigError for a caption outside the grammar."""

    def counts(self, images: np.ndarray, captions: Sequence[str]) -> tuple[Counts, np.ndarray]:
        descriptions = [parse_caption(caption) for caption in captions]
        images = to_uint8(images)
        images = alpha_composite(images, 255) if images.shape[-1] == 4 else images
        judgments = [judge.judge(image, description) for image, description in zip(images, descriptions, strict=True)]
        rows = judge.aggregate(judgments, descriptions)
        counts = {name: (int(row["correct"]), int(row["total"])) for name, row in rows.items()}
        return counts, np.array([judgment.all for judgment in judgments])

    def scores(self, counts: Counts) -> Scores:
        return {name: judge.rate_row(*counts[name]) for name in judge.ROW_NAMES if name in counts}


class _FiguresJudge(_JudgeBase):
    """Judges RGB images of at least 32×32. Raises ConfigError for a caption outside the grammar, or smaller images."""

    def counts(self, images: np.ndarray, captions: Sequence[str]) -> tuple[Counts, np.ndarray]:
        descriptions = [figures_captions.parse_caption(caption) for caption in captions]
        judgments = [
            figures_judge.judge(image, description)
            for image, description in zip(to_uint8(images), descriptions, strict=True)
        ]
        rows = figures_judge.outcomes(judgments, descriptions)
        counts = {name: (sum(outcomes), len(outcomes)) for name, outcomes in rows.items()}
        return counts, np.array([judgment.all for judgment in judgments])

    def scores(self, counts: Counts) -> Scores:
        return {name: judge.rate_row(*counts[name]) for name in figures_judge.ROW_NAMES if name in counts}


class _DigitsJudge(_JudgeBase):
    """Judges images [N, 8, 8, 1]; rows are the digits, and all of them.

    An image is correct if a classifier fitted to the real training images predicts the caption's digit. The row
    `real test images` is the classifier's accuracy on real images, an upper bound.
    """

    def counts(self, images: np.ndarray, captions: Sequence[str]) -> tuple[Counts, np.ndarray]:
        from imagen_jax.datasets.digits import DIGIT_NAMES  # optional, see _digit_classifier

        labels = np.array([_parse_digit(caption) for caption in captions])
        correct = _digit_classifier().predict(_features(images)) == labels
        by_label = {name: correct[labels == label] for label, name in enumerate(DIGIT_NAMES)} | {"all": correct}
        return {name: (int(row.sum()), len(row)) for name, row in by_label.items() if len(row)}, correct

    def scores(self, counts: Counts) -> Scores:
        from imagen_jax.datasets.digits import DIGIT_NAMES, load_split

        scores = {name: judge.rate_row(*counts[name]) for name in (*DIGIT_NAMES, "all") if name in counts}
        images, labels = load_split("test")
        correct = _digit_classifier().predict(_features(images)) == labels
        return scores | {"real test images": judge.success_rate(correct.tolist())}


@functools.cache
def _digit_classifier() -> Any:
    """Returns a classifier of digits fitted to the real training images."""
    # imported here: scikit-learn is optional and takes seconds to import
    from sklearn.svm import SVC

    from imagen_jax.datasets.digits import load_split

    images, labels = load_split("train")
    return SVC(gamma="scale", C=10.0).fit(_features(images), labels)


def _features(images: np.ndarray) -> np.ndarray:
    """Returns integer images as vectors in [0, 1]."""
    return images.reshape(len(images), -1) / np.iinfo(images.dtype).max


class ScoreCounts:
    """Counts of a judge's rows over the images of several batches.

    Args:
        judge: of the images.
        counts: of earlier images.
    """

    def __init__(self, judge: Judge, counts: Counts | None = None) -> None:
        self._judge, self._counts = judge, dict(counts or {})

    def update(self, images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        """Judges a batch of images [B, H, W, C], and returns whether each is fully correct, bool [B]."""
        counts, correct = self._judge.counts(images, captions)
        self.merge(ScoreCounts(self._judge, counts))
        return correct

    def merge(self, other: ScoreCounts) -> None:
        """Adds the counts of other images."""
        for name, (correct, total) in other._counts.items():
            before = self._counts.get(name, (0, 0))
            self._counts[name] = (before[0] + correct, before[1] + total)

    def result(self) -> Scores:
        """Returns the table of scores."""
        return self._judge.scores(self._counts)

    def to_json(self) -> dict[str, list[int]]:
        """Returns the counts as a JSON value."""
        return {name: list(counts) for name, counts in self._counts.items()}

    @classmethod
    def from_json(cls, judge: Judge, value: dict[str, list[int]]) -> ScoreCounts:
        """Returns the counts of `to_json`."""
        return cls(judge, {name: (correct, total) for name, (correct, total) in value.items()})


def _parse_digit(caption: str) -> int:
    """Returns the digit that a caption names. Raises ValueError if it names none or several."""
    from imagen_jax.datasets.digits import parse_label  # optional, as above

    return parse_label(caption)


JUDGES: dict[str, Judge] = {"shapes": _ShapesJudge(), "figures": _FiguresJudge(), "digits": _DigitsJudge()}
# they raise ValueError at captions that the judge does not understand
_CAPTION_PARSERS: dict[str, Callable[[str], Any]] = {
    "shapes": parse_caption,
    "figures": figures_captions.parse_caption,
    "digits": _parse_digit,
}


def get_judge(name: str) -> Judge:
    """Returns a judge. Raises ConfigError for an unknown name."""
    if name not in JUDGES:
        raise ConfigError(f"config.judge {name!r} is unknown: choose one of {', '.join(JUDGES)}, or '' for none")
    return JUDGES[name]


def check_captions(name: str, captions: Iterable[str]) -> None:
    """Raises ConfigError for the first caption that a judge does not understand."""
    for caption in captions:
        try:
            _CAPTION_PARSERS[name](caption)
        except ValueError as error:
            raise ConfigError(
                f"config.judge {name!r} cannot score the captions of this data set: {error}; set it to '' for no judge"
            ) from error


def format_scores(scores: Scores) -> str:
    """Returns the scores as a table."""
    width = max(len(name) for name in scores)
    lines = [f"{'':{width}}  correct / total     rate  95% interval"]
    for name, row in scores.items():
        counts = f"{row['correct']:7.0f} / {row['total']:<5.0f}"
        lines.append(f"{name:{width}}  {counts}  {row['rate']:7.1%}  {row['low']:.1%} – {row['high']:.1%}")
    return "\n".join(lines)
