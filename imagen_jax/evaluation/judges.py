"""Whether pictures show what their captions say, by the judge of their data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from imagen_jax.datasets.shapes import judge
from imagen_jax.datasets.shapes.captions import parse_caption
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import composite, to_8_bits

Scores = dict[str, dict[str, float]]
Judge = Callable[[np.ndarray, Sequence[str]], tuple[Scores, np.ndarray]]


def judge_shapes(images: np.ndarray, captions: Sequence[str]) -> tuple[Scores, np.ndarray]:
    """(scores by row, whether each picture is right in all, bool [N]) of RGB, or RGBA over white, [N, H, W, 3 or 4]."""
    descriptions = [parse_caption(caption) for caption in captions]
    images = to_8_bits(images)
    images = composite(images, 255) if images.shape[-1] == 4 else images
    judgements = [judge.judge(image, description) for image, description in zip(images, descriptions, strict=True)]
    return judge.aggregate(judgements, descriptions), np.array([judgement.all for judgement in judgements])


def judge_digits(images: np.ndarray, captions: Sequence[str]) -> tuple[Scores, np.ndarray]:
    """(scores by digit and in all, whether each picture is right, bool [N]) of [N, 8, 8, 1].

    A picture is right if a classifier that was fitted to the real training images names the caption's digit; the row
    ``real test images`` is what it gets right of those, the most that can be hoped for.
    """
    # scikit-learn takes seconds to import: only those who draw digits wait for it
    from sklearn.svm import SVC

    from imagen_jax.datasets.digits import DIGIT_NAMES, load_split, parse_label

    def features(pictures: np.ndarray) -> np.ndarray:
        return pictures.reshape(len(pictures), -1) / np.iinfo(pictures.dtype).max

    train_images, train_labels = load_split("train")
    test_images, test_labels = load_split("test")
    classifier = SVC(gamma="scale", C=10.0).fit(features(train_images), train_labels)
    labels = np.array([parse_label(caption) for caption in captions])
    right = classifier.predict(features(images)) == labels
    scores = {
        name: judge.success_rate(right[labels == label].tolist()) for label, name in enumerate(DIGIT_NAMES) if (labels == label).any()
    }
    scores["all"] = judge.success_rate(right.tolist())
    scores["real test images"] = judge.success_rate((classifier.predict(features(test_images)) == test_labels).tolist())
    return scores, right


def read_digit(caption: str) -> int:
    """The digit that a caption names. Raises ValueError if it names none or several."""
    from imagen_jax.datasets.digits import parse_label  # as above

    return parse_label(caption)


JUDGES: dict[str, Judge] = {"shapes": judge_shapes, "digits": judge_digits}
READS: dict[str, Callable[[str], Any]] = {"shapes": parse_caption, "digits": read_digit}  # what a caption claims, or ValueError


def make_judge(name: str) -> Judge:
    """The judge of that name. Raises UsageError if there is none."""
    if name not in JUDGES:
        raise ConfigError(f"config.judge {name!r} is not known: choose one of {', '.join(JUDGES)}, or '' for none")
    return JUDGES[name]


def check_captions(name: str, captions: Sequence[str]) -> None:
    """Raises UsageError for a caption that the judge of that name does not understand."""
    for caption in captions:
        try:
            READS[name](caption)
        except ValueError as error:
            raise ConfigError(
                f"config.judge {name!r} cannot judge these (set it to '' for no judge): {error}"
            ) from error


def scores_table(scores: Scores) -> str:
    """The scores as lines for people."""
    width = max(len(name) for name in scores)
    lines = [f"{'':{width}}  right / total     rate  95% interval"]
    for name, row in scores.items():
        counts = f"{row['right']:5.0f} / {row['total']:<5.0f}"
        lines.append(f"{name:{width}}  {counts}  {row['rate']:7.1%}  {row['low']:.1%} – {row['high']:.1%}")
    return "\n".join(lines)
