"""Alignment of images with their captions, scored by the judge of their data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from imagen_jax.datasets.shapes import judge
from imagen_jax.datasets.shapes.captions import parse_caption
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import alpha_composite, to_uint8

Scores = dict[str, dict[str, float]]
Judge = Callable[[np.ndarray, Sequence[str]], tuple[Scores, np.ndarray]]


def _judge_shapes(images: np.ndarray, captions: Sequence[str]) -> tuple[Scores, np.ndarray]:
    """Returns (scores by row, whether each image is fully correct, bool [N]).

    Args:
        images: RGB, or RGBA to be composited on white, [N, H, W, 3 or 4].
        captions: their captions.

    Raises:
        ConfigError: a caption is outside the grammar of the data set.
    """
    descriptions = [parse_caption(caption) for caption in captions]
    images = to_uint8(images)
    images = alpha_composite(images, 255) if images.shape[-1] == 4 else images
    judgments = [judge.judge(image, description) for image, description in zip(images, descriptions, strict=True)]
    return judge.aggregate(judgments, descriptions), np.array([judgment.all for judgment in judgments])


def _judge_digits(images: np.ndarray, captions: Sequence[str]) -> tuple[Scores, np.ndarray]:
    """Returns (scores by digit and in total, whether each image is correct, bool [N]) for images [N, 8, 8, 1].

    An image is correct if a classifier fitted to the real training images predicts the caption's digit. The row
    `real test images` is the classifier's accuracy on real images, an upper bound.
    """
    # imported here: scikit-learn is optional and takes seconds to import
    from sklearn.svm import SVC

    from imagen_jax.datasets.digits import DIGIT_NAMES, load_split, parse_label

    def features(batch: np.ndarray) -> np.ndarray:
        return batch.reshape(len(batch), -1) / np.iinfo(batch.dtype).max

    train_images, train_labels = load_split("train")
    test_images, test_labels = load_split("test")
    classifier = SVC(gamma="scale", C=10.0).fit(features(train_images), train_labels)
    labels = np.array([parse_label(caption) for caption in captions])
    correct = classifier.predict(features(images)) == labels
    scores = {
        name: judge.success_rate(correct[labels == label].tolist())
        for label, name in enumerate(DIGIT_NAMES)
        if (labels == label).any()
    }
    scores["all"] = judge.success_rate(correct.tolist())
    scores["real test images"] = judge.success_rate((classifier.predict(features(test_images)) == test_labels).tolist())
    return scores, correct


def _parse_digit(caption: str) -> int:
    """Returns the digit that a caption names. Raises ValueError if it names none or several."""
    from imagen_jax.datasets.digits import parse_label  # optional, as above

    return parse_label(caption)


JUDGES: dict[str, Judge] = {"shapes": _judge_shapes, "digits": _judge_digits}
# they raise ValueError at captions that the judge does not understand
_CAPTION_PARSERS: dict[str, Callable[[str], Any]] = {"shapes": parse_caption, "digits": _parse_digit}


def get_judge(name: str) -> Judge:
    """Returns a judge, a function `(images, captions) -> (scores, correct)`. Raises ConfigError for an unknown name."""
    if name not in JUDGES:
        raise ConfigError(f"config.judge {name!r} is unknown: choose one of {', '.join(JUDGES)}, or '' for none")
    return JUDGES[name]


def check_captions(name: str, captions: Sequence[str]) -> None:
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
