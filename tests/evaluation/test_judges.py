"""Judges accept true images, and reject other images and noise."""

import numpy as np
import pytest

from imagen_jax.datasets.digits import DigitsSource
from imagen_jax.datasets.shapes.source import ShapesSource
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.judges import check_captions, format_scores, get_judge

COUNT = 200


@pytest.fixture(scope="module")
def shapes():
    source = ShapesSource(21, "held_out", 64, COUNT)
    examples = [source[i] for i in range(COUNT)]
    return np.stack([example.image for example in examples]), [example.captions[0] for example in examples]


def test_true_images_are_correct(shapes):
    scores, correct = get_judge("shapes")(*shapes)
    assert correct.dtype == bool
    assert scores["all"]["correct"] == correct.sum() >= 0.99 * COUNT
    assert scores["all"]["total"] == COUNT
    for name, row in scores.items():
        assert row["rate"] >= 0.97, name


@pytest.mark.parametrize("kind", [{"transparent": True}, {"bits": 16}, {"resolution": (48, 72)}], ids=str)
def test_true_images_of_every_kind(kind):
    source = ShapesSource(**{"seed": 22, "split": "held_out", "resolution": 64, "num_examples": 60} | kind)
    examples = [source[i] for i in range(60)]
    images, captions = np.stack([example.image for example in examples]), [e.captions[0] for e in examples]
    assert get_judge("shapes")(images, captions)[1].mean() >= 0.98
    assert get_judge("shapes")(np.roll(images, 1, axis=0), captions)[1].mean() < 0.1


def test_images_of_other_captions_are_wrong(shapes):
    images, captions = shapes
    scores, correct = get_judge("shapes")(np.roll(images, 1, axis=0), captions)
    assert scores["all"]["rate"] < 0.1
    assert correct.mean() == scores["all"]["rate"]


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "gray"])
def test_noise_is_wrong(shapes, kind):
    images, captions = shapes
    rng = np.random.default_rng(0)
    noise = {
        "uniform": rng.integers(0, 256, images.shape),
        "gaussian": np.clip(rng.normal(128, 64, images.shape), 0, 255),
        "gray": np.full(images.shape, 128),
    }[kind].astype(np.uint8)
    scores, correct = get_judge("shapes")(noise, captions)
    assert not correct.any()
    for row in ("single object", "two objects", "shape", "position", "relation", "size", "attribute binding", "all"):
        assert scores[row]["correct"] == 0, row
    # noise has specks of any color and one to four blobs: only these rows may give it credit
    for row in ("colour", "count"):
        assert scores[row]["rate"] < 0.5, row


def test_unknown_caption_raises(shapes):
    with pytest.raises(ConfigError, match="a fox"):
        get_judge("shapes")(shapes[0][:1], ["a fox"])


@pytest.fixture(scope="module")
def digits():
    source = DigitsSource("test", 8)
    examples = [source[i] for i in range(len(source))]
    return np.stack([example.image for example in examples]), [example.captions[0] for example in examples]


def test_real_digits_reach_upper_bound(digits):
    scores, correct = get_judge("digits")(*digits)
    assert scores["all"] == scores["real test images"]
    assert scores["all"]["rate"] > 0.97
    assert scores["all"]["rate"] == correct.mean()
    digits_alone = [row for name, row in scores.items() if name not in ("all", "real test images")]
    assert len(digits_alone) == 10
    assert sum(row["total"] for row in digits_alone) == len(correct)
    assert sum(row["correct"] for row in digits_alone) == correct.sum()


def test_noise_is_a_digit_by_chance(digits):
    images, captions = digits
    noise = np.random.default_rng(0).integers(0, 256, images.shape).astype(np.uint8)
    scores, correct = get_judge("digits")(noise, captions)
    assert scores["all"]["rate"] < 0.2
    assert scores["real test images"]["rate"] > 0.97


def test_shuffled_digits_are_wrong(digits):
    images, captions = digits
    order = np.argsort(captions, kind="stable")
    swapped = images.copy()
    swapped[order] = images[np.roll(order, len(order) // 3)]
    assert get_judge("digits")(swapped, captions)[0]["all"]["rate"] < 0.3


def test_unknown_judge_raises():
    with pytest.raises(ConfigError, match="config.judge 'people'.*shapes, figures, digits"):
        get_judge("people")


def test_check_captions(shapes, digits):
    check_captions("shapes", shapes[1])
    check_captions("digits", digits[1])
    for name, caption in (("shapes", "a fox"), ("digits", "a red circle")):
        with pytest.raises(ConfigError, match=f"config.judge '{name}'.*'{caption}'"):
            check_captions(name, [caption])


def test_format_scores(shapes):
    scores, _ = get_judge("shapes")(shapes[0][:20], shapes[1][:20])
    head, *lines = format_scores(scores).splitlines()
    assert "95% interval" in head
    assert [line.split("  ")[0].strip() for line in lines] == list(scores)
    assert "100.0%" in lines[-1]
