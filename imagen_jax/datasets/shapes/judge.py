"""Judges whether shapes images show what their captions claim, and computes scores over many images.

Generated images are judged by the same rules as rendered ones, see `detect.py`. A wrong, missing, extra or malformed
object is an error; attributes that a caption does not mention are not judged.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from imagen_jax.datasets.shapes import scenes
from imagen_jax.datasets.shapes.descriptions import Claim, Description, category
from imagen_jax.datasets.shapes.detect import DetectedScene, Detection, detect

_MAX_CANDIDATES = 8  # how many of the largest detected objects are tried as the claimed ones

Row = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Judgment:
    """The result of judging an image; an attribute is None if the caption makes no such claim.

    Attributes:
        objects: the number of objects is as claimed.
        all: everything is correct, and nothing is missing, extra or malformed.
        color: all claimed colors are present; of two objects, on either one.
        shape: all claimed shapes are present; of two objects, on either one.
        size: correct for the objects that match the caption best, malformed ones included if there are no more objects
            than claimed.
        count: as `objects`, for captions that claim two to four objects.
        position: as `size`.
        relation: correct for the objects that match the caption best, if these are not malformed.
        binding: of two objects, each has its own color and shape, and they have the claimed relation, if there is one.
        background: the background is as claimed.
    """

    objects: bool
    all: bool
    color: bool | None = None
    shape: bool | None = None
    size: bool | None = None
    count: bool | None = None
    position: bool | None = None
    relation: bool | None = None
    binding: bool | None = None
    background: bool | None = None


def judge(image: np.ndarray, description: Description) -> Judgment:
    """Judges whether an image, uint8 [H, W, 3], shows what is described."""
    return compare(detect(image), description)


def compare(scene: DetectedScene, description: Description) -> Judgment:
    """Judges whether the detected background and objects are those described."""
    claims = [claim for claim in description.claims for _ in range(claim.count)]
    caption_type = category(description)
    same_number = len(scene.objects) == len(claims)
    trials = [
        _match(claims, objects, description.relation, same_number)
        for objects in _assignments(claims, scene.objects, same_number)
    ]
    # Objects are matched by their attributes; only ties are resolved by the relation.
    best = max(trials, key=lambda trial: (sum(trial.values()) - trial.get("relation", 0), trial.get("relation", 0)))
    background = scene.background == description.background if description.background else None
    well_formed = all(item.shape for item in scene.objects)  # also if the caption only says 'an object'
    return Judgment(
        objects=same_number,
        all=same_number and well_formed and background is not False and all(best.values()),
        color=_any_trial(trials, "color"),
        shape=_any_trial(trials, "shape"),
        size=best.get("size"),
        count=same_number if caption_type == "count" else None,
        position=best.get("position"),
        relation=best.get("relation"),
        binding=_any_trial(trials, "color", "shape", "relation") if caption_type == "two objects" else None,
        background=background,
    )


def _assignments(
    claims: Sequence[Claim], detections: tuple[Detection, ...], same_number: bool
) -> Iterator[tuple[Detection | None, ...]]:
    """Yields assignments of a detected object to each claim; None for a missing object."""
    if len(set(claims)) == 1:  # all claims are equal: take the objects that match best
        ranked = sorted(
            detections, key=lambda item: -sum(_match_attributes([claims[0]], (item,), same_number).values())
        )
        detections = tuple(ranked)[: len(claims)]
        yield detections + (None,) * (len(claims) - len(detections))
    else:
        missing = max(0, len(claims) - len(detections))
        yield from itertools.permutations(detections[:_MAX_CANDIDATES] + (None,) * missing, len(claims))


def _match(
    claims: Sequence[Claim], objects: tuple[Detection | None, ...], relation: str, same_number: bool
) -> dict[str, bool]:
    """Returns for each claimed attribute whether the objects have it; `same_number`: there are no other objects."""
    matches = _match_attributes(claims, objects, same_number)
    if relation:
        first, second = objects
        matches["relation"] = (
            first is not None
            and second is not None
            and bool(first.shape and second.shape)
            and scenes.spatial_relation((first.x, first.y), (second.x, second.y)) == relation
        )
    return matches


def _match_attributes(
    claims: Sequence[Claim], objects: tuple[Detection | None, ...], same_number: bool
) -> dict[str, bool]:
    matches = {}
    # If there are other objects, position and size of a malformed one mean nothing: noise has blobs everywhere.
    located = objects if same_number else tuple(item if item and item.shape else None for item in objects)
    for attribute, items in (("color", objects), ("shape", objects), ("size", located), ("position", located)):
        pairs = [
            (getattr(claim, attribute), getattr(item, attribute, None))
            for claim, item in zip(claims, items, strict=True)
        ]
        if any(claimed for claimed, _ in pairs):
            matches[attribute] = all(claimed in ("", detected) for claimed, detected in pairs)
    return matches


def _any_trial(trials: list[dict[str, bool]], *attributes: str) -> bool | None:
    """Returns whether a trial matches all of the attributes; None if none of them is claimed."""
    claimed = [attribute for attribute in attributes if attribute in trials[0]]
    if not claimed:
        return None
    return any(all(trial[attribute] for attribute in claimed) for trial in trials)


# Row -> (category of the captions it counts, '' for any, attribute of Judgment), in the table's order. The names of
# rows are those of stored results: 'colour' stays.
_ATTRIBUTE_OF_ROW = {"colour": "color"}
_ROWS = {
    "single object": ("single object", "all"),
    "two objects": ("two objects", "all"),
    "count": ("", "count"),
    "colour": ("", "color"),
    "shape": ("", "shape"),
    "size": ("", "size"),
    "position": ("", "position"),
    "relation": ("", "relation"),
    "attribute binding": ("", "binding"),
    "background": ("", "background"),
    "objects": ("", "objects"),
    "all": ("", "all"),
    **{
        f"{caption_type}: {row}": (caption_type, _ATTRIBUTE_OF_ROW.get(row, row))
        for caption_type, rows in {
            "single object": ("objects", "colour", "shape", "size", "position", "background", "all"),
            "two objects": ("objects", "colour", "shape", "size", "relation", "background", "all"),
            "count": ("count", "colour", "shape", "size", "background", "all"),
        }.items()
        for row in rows
    },
}
_RELATION_AND_BINDING = "two objects: relation with both attributes bound"
ROW_NAMES = (*_ROWS, _RELATION_AND_BINDING)


def score(images: Iterable[np.ndarray], descriptions: Iterable[Description]) -> dict[str, Row]:
    """Scores how often images show what their captions claim.

    Args:
        images: uint8 [H, W, 3] each.
        descriptions: the description of each image.

    Returns:
        A JSON-compatible table: row name -> `correct` of `total` captions that make the claim, the `rate`, and its 95%
        Wilson interval from `low` to `high`. Rows are attributes over all captions ('colour', …, 'attribute binding',
        'objects': the number of objects, 'all': everything claimed), captions of a category with everything correct
        ('single object', 'two objects'), attributes over captions of a category ('single object: colour', …), and
        'two objects: relation with both attributes bound' over captions that claim a relation. 'count' is the number
        of objects over captions that claim two to four, 'count: all' everything they claim. Rows without captions are
        absent.

    Raises:
        ValueError: the numbers of images and descriptions differ.
    """
    descriptions = list(descriptions)
    return aggregate([judge(image, d) for image, d in zip(images, descriptions, strict=True)], descriptions)


def aggregate(judgments: Sequence[Judgment], descriptions: Sequence[Description]) -> dict[str, Row]:
    """Returns the table of `score` for images that have been judged already."""
    judged = [(category(d), judgment) for judgment, d in zip(judgments, descriptions, strict=True)]
    outcomes = {
        row: [getattr(judgment, attribute) for of_type, judgment in judged if caption_type in ("", of_type)]
        for row, (caption_type, attribute) in _ROWS.items()
    }
    outcomes[_RELATION_AND_BINDING] = [judgment.binding for _, judgment in judged if judgment.relation is not None]
    return {
        row: success_rate([bool(value) for value in values if value is not None])
        for row, values in outcomes.items()
        if set(values) - {None}
    }


def success_rate(outcomes: Sequence[bool]) -> Row:
    """Returns a row of a table: how many outcomes are correct, and the rate with Wilson's 95% interval."""
    return rate_row(int(sum(outcomes)), len(outcomes))


def rate_row(correct: int, total: int) -> Row:
    """Returns the row of `success_rate` for a number of correct outcomes out of all."""
    low, high = wilson_interval(correct, total)
    return {"correct": correct, "total": total, "rate": correct / total, "low": low, "high": high}


def wilson_interval(correct: float, total: float, z: float = 1.959964) -> tuple[float, float]:
    """Returns Wilson's interval of a rate, 95% by default; unlike the normal interval it is valid near 0 and 1."""
    center = (correct + z * z / 2) / (total + z * z)
    half = z / (total + z * z) * math.sqrt(correct * (total - correct) / total + z * z / 4)
    rate = correct / total  # at 0 and 1 it is an end, which rounding must not leave out
    return max(0.0, min(rate, center - half)), min(1.0, max(rate, center + half))
