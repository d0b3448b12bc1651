"""Whether shapes pictures show what their captions claim, and how often: the project's own measure of quality.

A picture drawn by a model is judged by the same rules as a true one, see imagen_jax.datasets.shapes.detect. A wrong,
missing, extra or malformed object is an error; what a caption leaves unsaid is not judged.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from imagen_jax.datasets.shapes import scenes
from imagen_jax.datasets.shapes.descriptions import Claim, Description, category
from imagen_jax.datasets.shapes.detect import Detection, DetectedScene, detect

__all__ = ["Found", "Judgement", "Picture", "compare", "judge", "read", "rate", "score", "tabulate", "wilson"]

CANDIDATES = 8  # of the objects found, how many of the largest are tried in the places of the claimed ones

Row = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Judgment:
    """What is right about a picture; None where the caption claims nothing of the kind.

    objects: as many as claimed were found.
    count: the same, of a caption that claims two to four things.
    colour, shape: all that are claimed are there, of two objects on whichever of them.
    size, position: right of the objects that agree best with the caption; of malformed ones too, if there are no more
        objects than are claimed.
    relation: right of the objects that agree best with the caption, if they are not malformed.
    binding: of two objects, each has its own colour and shape, and they stand in the claimed relation, if one is.
    all: everything at once, with nothing wrong, missing, extra or malformed.
    """

    objects: bool
    all: bool
    colour: bool | None = None
    shape: bool | None = None
    size: bool | None = None
    count: bool | None = None
    position: bool | None = None
    relation: bool | None = None
    binding: bool | None = None
    background: bool | None = None


def judge(image: np.ndarray, description: Description) -> Judgment:
    """Whether a picture, uint8 [H, W, 3], shows what is described."""
    return compare(detect(image), description)


def compare(picture: DetectedScene, description: Description) -> Judgment:
    """Whether what was read from a picture is what is described."""
    claims = [claim for claim in description.claims for _ in range(claim.count)]
    kind = category(description)
    objects = len(picture.things) == len(claims)
    candidates = _candidates(claims, picture.things, objects)
    trials = [_try(claims, found, description.relation, objects) for found in candidates]
    # Objects are told apart by their looks; only where these leave it open, by the relation.
    best = max(trials, key=lambda trial: (sum(trial.values()) - trial.get("relation", 0), trial.get("relation", 0)))
    background = picture.background == description.background if description.background else None
    formed = all(found.shape for found in picture.things)  # also where the caption says only 'an object'
    return Judgment(
        objects=objects,
        all=objects and formed and background is not False and all(best.values()),
        colour=_any(trials, "colour"),
        shape=_any(trials, "shape"),
        size=best.get("size"),
        count=objects if kind == "count" else None,
        position=best.get("position"),
        relation=best.get("relation"),
        binding=_any(trials, "colour", "shape", "relation") if kind == "two objects" else None,
        background=background,
    )


def _candidates(
    claims: Sequence[Claim], things: tuple[Detection, ...], objects: bool
) -> Iterator[tuple[Detection | None, ...]]:
    """Choices of an object for each claim; None stands for one that is missing."""
    if len(set(claims)) == 1:  # all alike, so the best are the best of each
        best_first = sorted(things, key=lambda found: -sum(_agree([claims[0]], (found,), objects).values()))
        things = tuple(best_first)[: len(claims)]
        yield things + (None,) * (len(claims) - len(things))
    else:
        missing = max(0, len(claims) - len(things))
        yield from itertools.permutations(things[:CANDIDATES] + (None,) * missing, len(claims))


def _try(claims: Sequence[Claim], found: tuple[Detection | None, ...], relation: str, objects: bool) -> dict[str, bool]:
    """For each attribute that is claimed, whether the objects found have it; ``objects``: there are no others."""
    agreement = _agree(claims, found, objects)
    if relation:
        first, second = found
        agreement["relation"] = (
            first is not None
            and second is not None
            and bool(first.shape and second.shape)
            and scenes.spatial_relation((first.x, first.y), (second.x, second.y)) == relation
        )
    return agreement


def _agree(claims: Sequence[Claim], found: tuple[Detection | None, ...], objects: bool) -> dict[str, bool]:
    agreement = {}
    # Among others, where a blot of no known shape lies, or how large it is, says nothing: noise has blots everywhere.
    placed = found if objects else tuple(thing if thing and thing.shape else None for thing in found)
    for attribute, things in (("colour", found), ("shape", found), ("size", placed), ("position", placed)):
        said = [
            (getattr(claim, attribute), getattr(thing, attribute, None))
            for claim, thing in zip(claims, things, strict=True)
        ]
        if any(claimed for claimed, _ in said):
            agreement[attribute] = all(claimed in ("", seen) for claimed, seen in said)
    return agreement


def _any(trials: list[dict[str, bool]], *attributes: str) -> bool | None:
    """Whether some trial has all of the attributes right; None if none of them is claimed."""
    claimed = [attribute for attribute in attributes if attribute in trials[0]]
    if not claimed:
        return None
    return any(all(trial[attribute] for attribute in claimed) for trial in trials)


# What each row counts, of the captions of a category ('' is any), in the table's order.
_ROWS = {
    "single object": ("single object", "all"),
    "two objects": ("two objects", "all"),
    "count": ("", "count"),
    "colour": ("", "colour"),
    "shape": ("", "shape"),
    "size": ("", "size"),
    "position": ("", "position"),
    "relation": ("", "relation"),
    "attribute binding": ("", "binding"),
    "background": ("", "background"),
    "objects": ("", "objects"),
    "all": ("", "all"),
    **{
        f"{kind}: {attribute}": (kind, attribute)
        for kind, attributes in {
            "single object": ("objects", "colour", "shape", "size", "position", "background", "all"),
            "two objects": ("objects", "colour", "shape", "size", "relation", "background", "all"),
            "count": ("count", "colour", "shape", "size", "background", "all"),
        }.items()
        for attribute in attributes
    },
}
RELATION_AND_BINDING = "two objects: relation with both attributes bound"


def score(images: Iterable[np.ndarray], descriptions: Iterable[Description]) -> dict[str, Row]:
    """How often pictures show what their captions claim.

    Args:
      images: uint8 [H, W, 3] each.
      descriptions: what is claimed of them, as many.

    Returns:
      A table that JSON can hold: by the row's name `correct` of `total` captions that claim it, the `rate`, and its 95%
      Wilson interval from `low` to `high`. Rows are attributes over all captions ('colour', …, 'attribute binding',
      'objects': the number of objects, 'all': everything claimed), captions of a kind with all they claim right
      ('single object', 'two objects'), attributes over captions of a kind ('single object: colour', …), and
      'two objects: relation with both attributes bound' over captions that claim a relation. 'count' is the number
      over captions of a number, 'count: all' everything they claim. Rows that no caption claims are absent.

    Raises:
      ValueError: there are more of one than of the other.
    """
    descriptions = list(descriptions)
    return aggregate([judge(image, d) for image, d in zip(images, descriptions, strict=True)], descriptions)


def aggregate(judgements: Sequence[Judgment], descriptions: Sequence[Description]) -> dict[str, Row]:
    """The table of ``score``, from judgements that were made already."""
    judged = [(category(d), judgement) for judgement, d in zip(judgements, descriptions, strict=True)]
    outcomes = {
        row: [getattr(judgement, attribute) for of, judgement in judged if kind in ("", of)]
        for row, (kind, attribute) in _ROWS.items()
    }
    outcomes[RELATION_AND_BINDING] = [judgement.binding for _, judgement in judged if judgement.relation is not None]
    return {row: success_rate([bool(o) for o in seen if o is not None]) for row, seen in outcomes.items() if set(seen) - {None}}


def success_rate(outcomes: Sequence[bool]) -> Row:
    """One row of a table: how many outcomes are right, with Wilson's 95% interval."""
    right, total = int(sum(outcomes)), len(outcomes)
    low, high = _wilson_interval(right, total)
    return {"correct": right, "total": total, "rate": right / total, "low": low, "high": high}


def _wilson_interval(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval of a rate, 95% by default; unlike the normal one it stays honest near 0 and 1."""
    middle = (right + z * z / 2) / (total + z * z)
    half = z / (total + z * z) * math.sqrt(right * (total - right) / total + z * z / 4)
    return max(0.0, middle - half), min(1.0, middle + half)
