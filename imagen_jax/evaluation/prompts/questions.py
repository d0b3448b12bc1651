"""GenEval's questions (arXiv:2310.11513), answered by the reader of shapes in place of a detector.

The rules are those of GenEval's own program: each object of `include` has to be there, `count` times, in its color and
at its place relative to an earlier one; none of `exclude` may be there `count` times. Other objects are no errors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from imagen_jax.datasets.shapes.detect import DetectedScene, Detection, detect
from imagen_jax.datasets.shapes.scenes import COLORS, NEW_SHAPES, RELATIONS, SHAPES
from imagen_jax.errors import ConfigError, unknown_name_error
from imagen_jax.images.array import Size, alpha_composite, to_uint8

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
_MARGIN = 0.1  # of the sides of two boxes, by which their centers have to be apart
_MAX_COUNT = 100


class Answer(NamedTuple):
    """Whether an image is correct, and if not, why."""

    correct: bool
    reason: str = ""


def check_question(question: Mapping[str, Any], place: str) -> None:
    """Raises ConfigError unless a question has the form of GenEval's; `place` is for messages."""
    groups = [question.get("include", []), question.get("exclude", [])]
    if not all(isinstance(group, list) for group in groups) or not any(groups):
        raise ConfigError(f"{place} has no lists include and exclude of objects: copy GenEval's file again")
    for index, item in enumerate(groups[0] + groups[1]):
        count = item.get("count") if isinstance(item, dict) else None
        if not isinstance(count, int) or not 1 <= count <= _MAX_COUNT or not isinstance(item.get("class"), str):
            raise ConfigError(f"{place} has the object {item!r}: expected a class, and a count from 1 to {_MAX_COUNT}")
        position = item.get("position")
        if position is not None and not _is_position(position, index):
            raise ConfigError(
                f"{place} has the position {position!r}: expected {' or '.join(RELATIONS)}, and the index of an "
                "earlier object"
            )


def _is_position(position: Any, index: int) -> bool:
    if not isinstance(position, list) or len(position) != 2:
        return False
    return position[0] in RELATIONS and isinstance(position[1], int) and 0 <= position[1] < index


def check_shapes_question(question: Mapping[str, Any]) -> None:
    """Raises ConfigError for a question about objects or colors that the reader of shapes does not know."""
    for item in [*question.get("include", []), *question.get("exclude", [])]:
        if item["class"] not in (*SHAPES, *NEW_SHAPES):
            raise unknown_name_error("to the reader of shapes, the object", item["class"], (*SHAPES, *NEW_SHAPES))
        if "color" in item and item["color"] not in COLORS:
            raise unknown_name_error("to the reader of shapes, the color", item["color"], COLORS)


def answer_by_shapes(image: np.ndarray, question: Mapping[str, Any]) -> Answer:
    """Returns whether an image of shapes, [H, W, C], is correct; RGBA is composited on white."""
    image = to_uint8(image)
    image = alpha_composite(image, 255) if image.shape[-1] == 4 else image
    return answer(detect(image), question, (image.shape[0], image.shape[1]))


def answer(scene: DetectedScene, question: Mapping[str, Any], size: Size) -> Answer:
    """Returns whether detected objects are those of a question.

    Args:
        scene: the objects; those whose shape is malformed count as none.
        question: with `include` and `exclude`.
        size: (height, width) of the image.
    """
    reasons: list[str] = []
    matched: list[Sequence[Detection] | None] = []
    for item in question.get("include", []):
        objects = _of_class(scene, item["class"])[: item["count"]]
        reason = _problem(item, objects, matched, size)
        if reason:
            reasons.append(reason)
        matched.append(None if reason else objects)
    for item in question.get("exclude", []):
        objects = _of_class(scene, item["class"])
        if len(objects) >= item["count"]:
            reasons.append(f"expected {item['class']}<{item['count']}, found {len(objects)}")
    return Answer(not reasons, "\n".join(reasons))


def _of_class(scene: DetectedScene, name: str) -> list[Detection]:
    """Returns the objects of a class, the clearest first."""
    return sorted((item for item in scene.objects if item.shape == name), key=lambda item: -item.iou)


def _problem(
    item: Mapping[str, Any], objects: Sequence[Detection], matched: Sequence[Sequence[Detection] | None], size: Size
) -> str:
    """Returns what is wrong with the objects that should be an item of `include`; "" if nothing is."""
    name, count = item["class"], item["count"]
    if len(objects) < count:
        return f"expected {name}>={count}, found {len(objects)}"
    if "color" in item:
        right = sum(detection.color == item["color"] for detection in objects)
        if right < count:
            others = ", ".join(str(detection.color) for detection in objects)
            return f"expected {item['color']} {name}>={count}, found {right}; and {others}"
    if "position" in item:
        relation, target = item["position"]
        targets = matched[target]
        if targets is None:
            return f"no target for {name} to be {relation}"
        for first in objects:
            for second in targets:
                relations = relative_position(first, second, size)
                if relation not in relations:
                    return f"expected {name} {relation} target, found {' and '.join(sorted(relations))} target"
    return ""


def relative_position(first: Detection, second: Detection, size: Size) -> set[str]:
    """Returns which of RELATIONS the first object has to the second, none to two of them.

    As in GenEval: the distance of the centers, less a margin of a tenth of both boxes, has to be more than half of the
    distance in a direction.
    """
    height, width = size
    dx, dy = (first.x - second.x) * width, (first.y - second.y) * height
    margin = _MARGIN * 2 * (first.radius + second.radius) * min(height, width)
    distance = math.hypot(dx, dy)
    along = [math.copysign(max(abs(offset) - margin, 0.0), offset) / max(distance, 1e-9) for offset in (dx, dy)]
    names = (("left of", "right of"), ("above", "below"))
    return {pair[part > 0] for pair, part in zip(names, along, strict=True) if abs(part) > 0.5}
