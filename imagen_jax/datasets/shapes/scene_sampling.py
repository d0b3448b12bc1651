"""Random scenes: 40% have one object, 40% a pair in a clear relation, 20% two to four objects alike.

Objects are near the points of a 3×3 grid, and pairs and groups always near the same ones, so that a caption leaves
little ambiguity: a network learns last what it has to choose itself (with free positions, a demo trained for minutes
blended several of them). Placements are constructed, not found by rejection, because training waits for scenes.
"""

import itertools
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from imagen_jax.datasets.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    COUNTS,
    DEFAULT_POSITION,
    HELD_OUT_APPEARANCES,
    HELD_OUT_RELATIONS,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
)

_GRID = (0.25, 0.5, 0.75)  # x and y of the grid points
_JITTER = 0.015  # maximum distance of an object from its grid point, in x and in y
_DEFAULT_POSITION_PROBABILITY = 0.2  # that a single object has the default position; else its position is uniform
_ARRANGEMENTS = {  # grid points (column, row) of two, three and four objects alike
    2: ((0, 0), (2, 2)),
    3: ((0, 0), (2, 0), (1, 2)),
    4: ((0, 0), (2, 0), (0, 2), (2, 2)),
}

_BACKGROUNDS = tuple(BACKGROUNDS)
_SIZES = tuple(SIZES)
_ALL_APPEARANCES = tuple(itertools.product(COLORS, SHAPES))
_TRAINING_APPEARANCES = tuple(appearance for appearance in _ALL_APPEARANCES if appearance not in HELD_OUT_APPEARANCES)
_TRAINING_RELATIONS = {
    (first, second): tuple(r for r in RELATIONS if (first, r, second) not in HELD_OUT_RELATIONS)
    for first, second in itertools.product(SHAPES, SHAPES)
}

Item = TypeVar("Item")
_Appearance = tuple[str, str]  # (color, shape)


def sample_scene(split: str, rng: np.random.Generator) -> Scene:
    """Samples a scene of a split.

    'train' and 'validation' contain no combination of HELD_OUT_APPEARANCES or HELD_OUT_RELATIONS; every scene of
    'held_out' contains at least one.
    """
    held_out = split == "held_out"
    u = rng.random()
    background = _choose(_BACKGROUNDS, rng)
    if u < 0.4:
        return Scene(
            (_single(_choose(HELD_OUT_APPEARANCES if held_out else _TRAINING_APPEARANCES, rng), rng),), background
        )
    if u < 0.8:
        return Scene(_pair(*(_held_out_pair(rng) if held_out else _training_pair(rng)), rng), background)
    return Scene(_group(_choose(HELD_OUT_APPEARANCES if held_out else _TRAINING_APPEARANCES, rng), rng), background)


def _training_pair(rng: np.random.Generator) -> tuple[_Appearance, str, _Appearance]:
    first = second = _choose(_TRAINING_APPEARANCES, rng)
    while second == first:
        second = _choose(_TRAINING_APPEARANCES, rng)
    return first, _choose(_TRAINING_RELATIONS[first[1], second[1]], rng), second


def _held_out_pair(rng: np.random.Generator) -> tuple[_Appearance, str, _Appearance]:
    """Samples a pair with, at equal odds, a held-out appearance or a held-out relation of shapes."""
    if rng.random() < 0.5:
        shape, relation, other = _choose(HELD_OUT_RELATIONS, rng)
        return (_choose(tuple(COLORS), rng), shape), relation, (_choose(tuple(COLORS), rng), other)
    first = second = _choose(HELD_OUT_APPEARANCES, rng)
    while second == first:
        second = _choose(_ALL_APPEARANCES, rng)
    relation = _choose(RELATIONS, rng)
    return (first, relation, second) if rng.random() < 0.5 else (second, relation, first)


def _single(appearance: _Appearance, rng: np.random.Generator) -> SceneObject:
    """Samples an object at one of the nine positions, most often at the default one."""
    size, radius = _size(rng)
    position = DEFAULT_POSITION if rng.random() < _DEFAULT_POSITION_PROBABILITY else _choose(POSITIONS, rng)
    row, column = divmod(POSITIONS.index(position), 3)
    return _object(appearance, size, column, row, radius, rng)


def _pair(
    first: _Appearance, relation: str, second: _Appearance, rng: np.random.Generator
) -> tuple[SceneObject, SceneObject]:
    """Samples two objects, `first` in the relation to `second`; either may come first in the scene.

    They are at both ends of the middle row or column: two large objects do not fit closer together.
    """
    if relation in ("right of", "below"):
        first, second = second, first
    ends = ((0, 1), (2, 1)) if relation in ("left of", "right of") else ((1, 0), (1, 2))
    (size_1, radius_1), (size_2, radius_2) = _size(rng), _size(rng)
    pair = _object(first, size_1, *ends[0], radius_1, rng), _object(second, size_2, *ends[1], radius_2, rng)
    return pair if rng.random() < 0.5 else pair[::-1]


def _group(appearance: _Appearance, rng: np.random.Generator) -> tuple[SceneObject, ...]:
    """Samples two to four objects with the same appearance, size and radius, in the arrangement of their number."""
    size, radius = _size(rng)
    return tuple(
        _object(appearance, size, column, row, radius, rng) for column, row in _ARRANGEMENTS[_choose(COUNTS, rng)]
    )


def _object(
    appearance: _Appearance, size: str, column: int, row: int, radius: float, rng: np.random.Generator
) -> SceneObject:
    x, y = (_GRID[i] + _uniform(-_JITTER, _JITTER, rng) for i in (column, row))
    return SceneObject(appearance[1], appearance[0], size, x, y, radius)


def _size(rng: np.random.Generator) -> tuple[str, float]:
    size = _choose(_SIZES, rng)
    return size, _uniform(*SIZES[size], rng)


def _uniform(low: float, high: float, rng: np.random.Generator) -> float:
    return low + (high - low) * rng.random()


def _choose(items: Sequence[Item], rng: np.random.Generator) -> Item:
    return items[int(rng.random() * len(items))]  # Generator.choice and integers are ten times slower
