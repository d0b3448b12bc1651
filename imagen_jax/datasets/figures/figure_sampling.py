"""Samples figures."""

from collections.abc import Sequence

import numpy as np

from imagen_jax.datasets.figures.scenes import (
    ARM_ANGLE,
    BACKGROUNDS,
    CENTER_X,
    CENTER_Y,
    COLORS,
    GARMENTS,
    HAIRS,
    HEIGHT,
    LEG_ANGLE,
    PATTERNS,
    SKINS,
    Figure,
    Garment,
    Pose,
    is_held_out,
)

_DRESS = 0.2  # part of the figures that wear a dress


def sample_figure(split: str, rng: np.random.Generator) -> Figure:
    """Samples a figure of a split; in 'held_out', one of its garments is held out of training, and the other not."""
    places = ("body",) if rng.random() < _DRESS else ("top", "bottom")
    held_out = int(rng.integers(len(places))) if split == "held_out" else -1
    garments: list[Garment] = []
    for index, place in enumerate(places):
        garments.append(sample_garment(place, rng, index == held_out, [garment.color for garment in garments]))
    pose = Pose(
        x=rng.uniform(*CENTER_X),
        y=rng.uniform(*CENTER_Y),
        height=rng.uniform(*HEIGHT),
        left_arm=rng.uniform(*ARM_ANGLE),
        right_arm=rng.uniform(*ARM_ANGLE),
        legs=rng.uniform(*LEG_ANGLE),
    )
    background, skin, hair = (_choose(list(names), rng) for names in (BACKGROUNDS, SKINS, HAIRS))
    return Figure(tuple(garments), background, skin, hair, bool(rng.random() < 0.5), pose)


def sample_garment(place: str, rng: np.random.Generator, held_out: bool, taken: Sequence[str] = ()) -> Garment:
    """Samples a garment of a place.

    Args:
        place: one of GARMENTS.
        rng: the random generator.
        held_out: whether it is one that is held out of training.
        taken: colors that it does not have.
    """
    colors = list(COLORS)
    while True:
        garment = Garment(_choose(GARMENTS[place], rng), _choose(colors, rng), _choose(PATTERNS, rng))
        if garment.color not in taken and is_held_out(garment) == held_out:
            return garment


def _choose(names: Sequence[str], rng: np.random.Generator) -> str:
    return names[int(rng.integers(len(names)))]
