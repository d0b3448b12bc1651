"""Drawing scenes at random: 40% one thing, 40% a pair in a clear relation, 20% two to four things alike.

Every placement is constructed, never tried and rejected, because scenes are made while training waits.
"""

import itertools
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from imagen_jax.data.shapes.scenes import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    HELD_OUT_LOOKS,
    HELD_OUT_RELATIONS,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
)

MARGIN = 0.02  # between a thing and the picture's edge
GAP = 0.05  # between the bounding boxes of two things: 3.2 pixels at 64×64
CENTRED = (0.41, 0.59)  # where the centre of a thing in the middle third lies, clear of the thirds' borders
OUTSIDE = 0.28  # how far from the edge the centre of a thing in an outer third lies at most
SLANT = 0.4  # of two things' distance along their relation's axis, the part they may be apart on the other one

_BACKGROUNDS = tuple(BACKGROUNDS)
_SIZES = tuple(SIZES)
_ALL_LOOKS = tuple(itertools.product(COLOURS, SHAPES))
_SEEN_LOOKS = tuple(look for look in _ALL_LOOKS if look not in HELD_OUT_LOOKS)
_SEEN_RELATIONS = {
    (first, second): tuple(r for r in RELATIONS if (first, r, second) not in HELD_OUT_RELATIONS)
    for first, second in itertools.product(SHAPES, SHAPES)
}

Item = TypeVar("Item")
Look = tuple[str, str]  # (colour, shape)


def sample(split: str, rng: np.random.Generator) -> Scene:
    """One scene of a split.

    'train' and 'validation' never show a look of HELD_OUT_LOOKS nor two shapes in a relation of HELD_OUT_RELATIONS;
    every scene of 'held_out' shows at least one of them.
    """
    held_out = split == "held_out"
    draw = rng.random()
    background = _pick(_BACKGROUNDS, rng)
    if draw < 0.4:
        return Scene((_single(_pick(HELD_OUT_LOOKS if held_out else _SEEN_LOOKS, rng), rng),), background)
    if draw < 0.8:
        return Scene(_pair(*(_held_out_pair(rng) if held_out else _seen_pair(rng)), rng), background)
    return Scene(_alike(_pick(HELD_OUT_LOOKS if held_out else _SEEN_LOOKS, rng), rng), background)


def _seen_pair(rng: np.random.Generator) -> tuple[Look, str, Look]:
    first = second = _pick(_SEEN_LOOKS, rng)
    while second == first:
        second = _pick(_SEEN_LOOKS, rng)
    return first, _pick(_SEEN_RELATIONS[first[1], second[1]], rng), second


def _held_out_pair(rng: np.random.Generator) -> tuple[Look, str, Look]:
    """In half of the draws one look is held out, in the other half the relation of the shapes."""
    if rng.random() < 0.5:
        shape, relation, other = _pick(HELD_OUT_RELATIONS, rng)
        return (_pick(tuple(COLOURS), rng), shape), relation, (_pick(tuple(COLOURS), rng), other)
    first = second = _pick(HELD_OUT_LOOKS, rng)
    while second == first:
        second = _pick(_ALL_LOOKS, rng)
    relation = _pick(RELATIONS, rng)
    return (first, relation, second) if rng.random() < 0.5 else (second, relation, first)


def _single(look: Look, rng: np.random.Generator) -> Thing:
    """One thing well inside one of the nine positions."""
    size, radius = _size(rng)
    row, column = divmod(int(rng.random() * len(POSITIONS)), 3)
    return _thing(look, size, _third(column, radius, rng), _third(row, radius, rng), radius)


def _pair(first: Look, relation: str, second: Look, rng: np.random.Generator) -> tuple[Thing, Thing]:
    """Two things of which `first` stands in the relation to `second`; either may come first in the scene."""
    if relation in ("right of", "below"):
        first, second = second, first
    (size_1, radius_1), (size_2, radius_2) = _size(rng), _size(rng)
    apart = _between(radius_1 + radius_2 + GAP, 1 - 2 * MARGIN - radius_1 - radius_2, rng)
    along = _between(MARGIN + radius_1, 1 - MARGIN - radius_2 - apart, rng)
    across = _between(MARGIN + radius_1, 1 - MARGIN - radius_1, rng)
    other = across + SLANT * apart * _between(-1, 1, rng)
    # Pulling a thing back into the picture can only bring the two nearer on this axis, so the other still dominates.
    other = min(max(other, MARGIN + radius_2), 1 - MARGIN - radius_2)
    if relation in ("left of", "right of"):
        things = (
            _thing(first, size_1, along, across, radius_1),
            _thing(second, size_2, along + apart, other, radius_2),
        )
    else:
        things = (
            _thing(first, size_1, across, along, radius_1),
            _thing(second, size_2, other, along + apart, radius_2),
        )
    return things if rng.random() < 0.5 else things[::-1]


def _alike(look: Look, rng: np.random.Generator) -> tuple[Thing, ...]:
    """Two to four things of one look, size and radius, each in a quarter of its own, off its middle."""
    count = _pick(COUNTS, rng)
    size, radius = _size(rng)
    cell = (1 - 2 * MARGIN + GAP) / 2
    slack = (cell - GAP) / 2 - radius
    free = list(range(4))
    things = []
    for _ in range(count):
        row, column = divmod(free.pop(int(rng.random() * len(free))), 2)
        x = MARGIN - GAP / 2 + (column + 0.5) * cell + slack * _between(-1, 1, rng)
        y = MARGIN - GAP / 2 + (row + 0.5) * cell + slack * _between(-1, 1, rng)
        things.append(_thing(look, size, x, y, radius))
    return tuple(things)


def _thing(look: Look, size: str, x: float, y: float, radius: float) -> Thing:
    return Thing(look[1], look[0], size, x, y, radius)


def _size(rng: np.random.Generator) -> tuple[str, float]:
    size = _pick(_SIZES, rng)
    return size, _between(*SIZES[size], rng)


def _third(third: int, radius: float, rng: np.random.Generator) -> float:
    if third == 1:
        return _between(*CENTRED, rng)
    outside = _between(MARGIN + radius, OUTSIDE, rng)
    return outside if third == 0 else 1 - outside


def _between(low: float, high: float, rng: np.random.Generator) -> float:
    return low + (high - low) * rng.random()


def _pick(items: Sequence[Item], rng: np.random.Generator) -> Item:
    return items[int(rng.random() * len(items))]  # Generator.choice and integers cost ten times as much
