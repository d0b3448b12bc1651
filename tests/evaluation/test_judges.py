"""The judges believe true pictures, and neither other pictures nor noise."""

import numpy as np
import pytest

from imagen_jax.datasets.digits import DigitsSource
from imagen_jax.datasets.shapes.source import ShapesSource
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.judges import check_captions, make_judge, scores_table

COUNT = 200


@pytest.fixture(scope="module")
def drawn():
    source = ShapesSource(21, "held_out", 64, COUNT)
    examples = [source[i] for i in range(COUNT)]
    return np.stack([example.image for example in examples]), [example.captions[0] for example in examples]


def test_true_pictures_are_right(drawn):
    scores, right = make_judge("shapes")(*drawn)
    assert right.dtype == bool
    assert scores["all"]["right"] == right.sum() >= 0.99 * COUNT
    assert scores["all"]["total"] == COUNT
    for name, row in scores.items():
        assert row["rate"] >= 0.97, name


@pytest.mark.parametrize("kind", [{"transparent": True}, {"bits": 16}, {"resolution": (48, 72)}], ids=str)
def test_true_pictures_of_every_kind_are_right(kind):
    source = ShapesSource(**{"seed": 22, "split": "held_out", "resolution": 64, "size": 60} | kind)
    examples = [source[i] for i in range(60)]
    images, captions = np.stack([example.image for example in examples]), [e.captions[0] for e in examples]
    assert make_judge("shapes")(images, captions)[1].mean() >= 0.98
    assert make_judge("shapes")(np.roll(images, 1, axis=0), captions)[1].mean() < 0.1


def test_pictures_of_other_captions_are_not(drawn):
    images, captions = drawn
    scores, right = make_judge("shapes")(np.roll(images, 1, axis=0), captions)
    assert scores["all"]["rate"] < 0.1
    assert right.mean() == scores["all"]["rate"]


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "grey"])
def test_noise_shows_nothing(drawn, kind):
    images, captions = drawn
    rng = np.random.default_rng(0)
    noise = {
        "uniform": rng.integers(0, 256, images.shape),
        "gaussian": np.clip(rng.normal(128, 64, images.shape), 0, 255),
        "grey": np.full(images.shape, 128),
    }[kind].astype(np.uint8)
    scores, right = make_judge("shapes")(noise, captions)
    assert not right.any()
    for row in ("single object", "two objects", "shape", "position", "relation", "size", "attribute binding", "all"):
        assert scores[row]["right"] == 0, row
    # specks of any colour are in noise, and so are one to four blots: these rows alone may credit some of it
    for row in ("colour", "count"):
        assert scores[row]["rate"] < 0.5, row


def test_a_caption_outside_the_grammar_is_refused(drawn):
    with pytest.raises(ConfigError, match="outside the shapes grammar"):
        make_judge("shapes")(drawn[0][:1], ["a fox"])


@pytest.fixture(scope="module")
def digits():
    source = DigitsSource("test", 8)
    examples = [source[i] for i in range(len(source))]
    return np.stack([example.image for example in examples]), [example.captions[0] for example in examples]


def test_real_digits_are_as_right_as_the_judge_can_be(digits):
    scores, right = make_judge("digits")(*digits)
    assert scores["all"] == scores["real test images"]
    assert scores["all"]["rate"] > 0.97
    assert scores["all"]["rate"] == right.mean()
    digits_alone = [row for name, row in scores.items() if name not in ("all", "real test images")]
    assert len(digits_alone) == 10
    assert sum(row["total"] for row in digits_alone) == len(right)
    assert sum(row["right"] for row in digits_alone) == right.sum()


def test_noise_is_a_digit_by_chance_only(digits):
    images, captions = digits
    noise = np.random.default_rng(0).integers(0, 256, images.shape).astype(np.uint8)
    scores, right = make_judge("digits")(noise, captions)
    assert scores["all"]["rate"] < 0.2
    assert scores["real test images"]["rate"] > 0.97


def test_other_digits_are_wrong(digits):
    images, captions = digits
    order = np.argsort(captions, kind="stable")
    swapped = images.copy()
    swapped[order] = images[np.roll(order, len(order) // 3)]
    assert make_judge("digits")(swapped, captions)[0]["all"]["rate"] < 0.3


def test_an_unknown_judge_is_refused():
    with pytest.raises(ConfigError, match="config.judge 'people' is not known: choose one of shapes, digits"):
        make_judge("people")


def test_captions_that_a_judge_does_not_read_are_refused_before_anything_is_drawn(drawn, digits):
    check_captions("shapes", drawn[1])
    check_captions("digits", digits[1])
    for name, caption in (("shapes", "a fox"), ("digits", "a red circle")):
        with pytest.raises(ConfigError, match=f"config.judge '{name}' cannot judge these .*'{caption}'"):
            check_captions(name, [caption])


def test_the_table_has_a_line_a_row(drawn):
    scores, _ = make_judge("shapes")(drawn[0][:20], drawn[1][:20])
    head, *lines = scores_table(scores).splitlines()
    assert "95% interval" in head
    assert [line.split("  ")[0].strip() for line in lines] == list(scores)
    assert "100.0%" in lines[-1]
