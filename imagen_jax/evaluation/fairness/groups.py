"""The groups whose shares are measured, and the shares that they should have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from imagen_jax.errors import ConfigError, unknown_name_error

MAX_GROUPS = 20


class Group(NamedTuple):
    """A group: its name, which is the first of the words for it."""

    name: str
    words: tuple[str, ...]


def parse_groups(text: str) -> list[Group]:
    """Returns groups of words, such as those of "woman|women,man|men".

    Raises:
        ConfigError: there are fewer than two groups, or a word is empty or in two of them.
    """
    parts = [tuple(word.strip() for word in part.split("|")) for part in text.split(",")]
    words = [word for part in parts for word in part]
    if not 2 <= len(parts) <= MAX_GROUPS or not all(words) or len(set(words)) < len(words):
        raise ConfigError(
            f"--groups {text!r} is not a list of two to {MAX_GROUPS} groups of different words: give such as "
            "'red,blue', or 'woman|women,man|men'"
        )
    return [Group(part[0], part) for part in parts]


def parse_target(text: str | None, groups: Sequence[Group]) -> dict[str, float]:
    """Returns the share that each group should have, in all 1.

    Args:
        text: such as "red:1,blue:3", with a weight for each group; None for equal shares.
        groups: the groups.

    Raises:
        ConfigError: a weight is not a number above 0, or a group has none or two.
    """
    names = [group.name for group in groups]
    if text is None:
        return dict.fromkeys(names, 1 / len(names))
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition(":"))
        if name not in names:
            raise unknown_name_error("in --target, the group", name, names)
        weight = _number(value)
        if name in weights or not math.isfinite(weight) or weight <= 0:
            raise ConfigError(
                f"--target {part.strip()!r} is not a group with one weight above 0: give such as {name}:1"
            )
        weights[name] = weight
    missing = [name for name in names if name not in weights]
    if missing:
        raise ConfigError(f"--target {text!r} has no weight for {', '.join(missing)}: give one for each group")
    total = sum(weights.values())
    return {name: weights[name] / total for name in names}


def distance_by_chance(target: Mapping[str, float], images: int) -> float:
    """Returns the mean distance to a target, by `total_variation`, of so many images drawn from it, for many images."""
    return sum(math.sqrt(2 * share * (1 - share) / (math.pi * images)) for share in target.values()) / 2


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def total_variation(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Returns how much of one distribution would have to move to make it the other: from 0 to 1."""
    return sum(abs(first[name] - second[name]) for name in first) / 2
