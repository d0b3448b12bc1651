"""GenEval's rules on detected objects."""

import numpy as np
import pytest

from imagen_jax.datasets.shapes.detect import DetectedScene, Detection
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.prompts.questions import answer, answer_by_shapes, check_shapes_question, relative_position

SIZE = (100, 100)


def item(shape, color="red", x=0.5, y=0.5, radius=0.1, iou=1.0):
    return Detection(shape, color, "small", x, y, radius, iou)


def ask(objects, include, exclude=()):
    return answer(DetectedScene("white", tuple(objects)), {"include": include, "exclude": list(exclude)}, SIZE)


def test_other_objects_are_no_errors():
    assert ask([item("ring"), item("cross"), item(None)], [{"class": "ring", "count": 1}]).correct


def test_missing_objects():
    found = ask([item("cross")], [{"class": "ring", "count": 1}])
    assert not found.correct and found.reason == "expected ring>=1, found 0"


def test_counting():
    question = [{"class": "ring", "count": 2}], [{"class": "ring", "count": 3}]
    assert [ask([item("ring")] * number, *question).correct for number in range(5)] == [
        False,
        False,
        True,
        False,
        False,
    ]


def test_colors_are_those_of_the_clearest_objects():
    question = [{"class": "ring", "count": 1, "color": "blue"}]
    clear, dull = item("ring", "blue", iou=0.99), item("ring", "red", iou=0.9)
    assert ask([dull, clear], question).correct
    assert ask([item("ring", "red", iou=1.0), clear], question).reason == "expected blue ring>=1, found 0; and red"


@pytest.mark.parametrize(
    "x, y, relations",
    [
        (0.2, 0.5, {"left of"}),
        (0.8, 0.5, {"right of"}),
        (0.5, 0.2, {"above"}),
        (0.5, 0.8, {"below"}),
        (0.1, 0.1, {"left of", "above"}),
        (0.52, 0.5, set()),  # less than a tenth of both boxes apart
        (0.5, 0.5, set()),
    ],
)
def test_relative_position(x, y, relations):
    assert relative_position(item("ring", x=x, y=y), item("cross"), SIZE) == relations


def test_relative_position_is_measured_in_pixels():
    """In a wide image, an object that is as far in units of the sides is farther to the side than above."""
    first, second = item("ring", x=0.3, y=0.3), item("cross", x=0.7, y=0.7)
    assert relative_position(first, second, (100, 400)) == {"left of"}


def test_position_needs_the_earlier_object():
    include = [{"class": "ring", "count": 1}, {"class": "cross", "count": 1, "position": ["left of", 0]}]
    assert ask([item("ring", x=0.8), item("cross", x=0.2)], include).correct
    assert "found right of target" in ask([item("ring", x=0.2), item("cross", x=0.8)], include).reason
    assert "no target for cross to be left of" in ask([item("cross")], include).reason


def test_objects_that_shapes_have_not():
    with pytest.raises(ConfigError, match="bench"):
        check_shapes_question({"include": [{"class": "bench", "count": 1}]})
    with pytest.raises(ConfigError, match="brown"):
        check_shapes_question({"include": [{"class": "ring", "count": 1, "color": "brown"}]})


def test_transparent_images_are_seen_on_white():
    image = np.zeros((32, 32, 4), np.uint8)
    assert not answer_by_shapes(image, {"include": [{"class": "ring", "count": 1}]}).correct
