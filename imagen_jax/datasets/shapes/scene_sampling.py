"""Drawing scenes at random: 40% one thing, 40% a pair in a clear relation, 20% two to four things alike.

Things stand near places of a grid of 3×3, and pairs and numbers always near the same ones. A caption so leaves little
open: what a network has to choose for itself, it learns last (things half here and half there were what a demo of
minutes drew before). Every placement is constructed, never tried and rejected: training waits for scenes.
"""

import itertools
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from imagen_jax.datasets.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    COUNTS,
    HELD_OUT_APPEARANCES,
    HELD_OUT_RELATIONS,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    DEFAULT_POSITION,
    Scene,
    SceneObject,
)

PLACES = (0.25, 0.5, 0.75)  # near which things stand, each way: the middles of the positions
JITTER = 0.015  # how far from its place a thing may be, each way
USUAL = 0.2  # share of single things that are put at the usual position; the others are at any
FIGURES = {  # the places, (column, row), of two, three and four things alike
    2: ((0, 0), (2, 2)),
    3: ((0, 0), (2, 0), (1, 2)),
    4: ((0, 0), (2, 0), (0, 2), (2, 2)),
}

_BACKGROUNDS = tuple(BACKGROUNDS)
_SIZES = tuple(SIZES)
_ALL_LOOKS = tuple(itertools.product(COLORS, SHAPES))
_SEEN_LOOKS = tuple(look for look in _ALL_LOOKS if look not in HELD_OUT_APPEARANCES)
_SEEN_RELATIONS = {
    (first, second): tuple(r for r in RELATIONS if (first, r, second) not in HELD_OUT_RELATIONS)
    for first, second in itertools.product(SHAPES, SHAPES)
}

Item = TypeVar("Item")
Look = tuple[str, str]  # (colour, shape)


def sample_scene(split: str, rng: np.random.Generator) -> Scene:
    """One scene of a split.

    'train' and 'validation' never show a look of HELD_OUT_LOOKS nor two shapes in a relation of HELD_OUT_RELATIONS;
    every scene of 'held_out' shows at least one of them.
    """
    held_out = split == "held_out"
    draw = rng.random()
    background = _pick(_BACKGROUNDS, rng)
    if draw < 0.4:
        return Scene((_single(_pick(HELD_OUT_APPEARANCES if held_out else _SEEN_LOOKS, rng), rng),), background)
    if draw < 0.8:
        return Scene(_pair(*(_held_out_pair(rng) if held_out else _seen_pair(rng)), rng), background)
    return Scene(_alike(_pick(HELD_OUT_APPEARANCES if held_out else _SEEN_LOOKS, rng), rng), background)


def _seen_pair(rng: np.random.Generator) -> tuple[Look, str, Look]:
    first = second = _pick(_SEEN_LOOKS, rng)
    while second == first:
        second = _pick(_SEEN_LOOKS, rng)
    return first, _pick(_SEEN_RELATIONS[first[1], second[1]], rng), second


def _held_out_pair(rng: np.random.Generator) -> tuple[Look, str, Look]:
    """In half of the draws one look is held out, in the other half the relation of the shapes."""
    if rng.random() < 0.5:
        shape, relation, other = _pick(HELD_OUT_RELATIONS, rng)
        return (_pick(tuple(COLORS), rng), shape), relation, (_pick(tuple(COLORS), rng), other)
    first = second = _pick(HELD_OUT_APPEARANCES, rng)
    while second == first:
        second = _pick(_ALL_LOOKS, rng)
    relation = _pick(RELATIONS, rng)
    return (first, relation, second) if rng.random() < 0.5 else (second, relation, first)


def _single(look: Look, rng: np.random.Generator) -> SceneObject:
    """One thing at one of the nine positions, most often at the usual one."""
    size, radius = _size(rng)
    position = DEFAULT_POSITION if rng.random() < USUAL else _pick(POSITIONS, rng)
    row, column = divmod(POSITIONS.index(position), 3)
    return _thing(look, size, column, row, radius, rng)


def _pair(first: Look, relation: str, second: Look, rng: np.random.Generator) -> tuple[SceneObject, SceneObject]:
    """Two things of which `first` stands in the relation to `second`; either may come first in the scene.

    They stand at both ends of the middle row or column: two large things have no room to be nearer.
    """
    if relation in ("right of", "below"):
        first, second = second, first
    ends = ((0, 1), (2, 1)) if relation in ("left of", "right of") else ((1, 0), (1, 2))
    (size_1, radius_1), (size_2, radius_2) = _size(rng), _size(rng)
    things = _thing(first, size_1, *ends[0], radius_1, rng), _thing(second, size_2, *ends[1], radius_2, rng)
    return things if rng.random() < 0.5 else things[::-1]


def _alike(look: Look, rng: np.random.Generator) -> tuple[SceneObject, ...]:
    """Two to four things of one look, size and radius, in the figure of their number."""
    size, radius = _size(rng)
    return tuple(_thing(look, size, column, row, radius, rng) for column, row in FIGURES[_pick(COUNTS, rng)])


def _thing(look: Look, size: str, column: int, row: int, radius: float, rng: np.random.Generator) -> SceneObject:
    x, y = (PLACES[place] + _between(-JITTER, JITTER, rng) for place in (column, row))
    return SceneObject(look[1], look[0], size, x, y, radius)


def _size(rng: np.random.Generator) -> tuple[str, float]:
    size = _pick(_SIZES, rng)
    return size, _between(*SIZES[size], rng)


def _between(low: float, high: float, rng: np.random.Generator) -> float:
    return low + (high - low) * rng.random()


def _pick(items: Sequence[Item], rng: np.random.Generator) -> Item:
    return items[int(rng.random() * len(items))]  # Generator.choice and integers cost ten times as much
