"""Krippendorff's alpha: how far raters agree beyond chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np


def krippendorff_alpha(
    units: Sequence[Sequence[float]], distance: Callable[[float, float], float] = lambda x, y: (x - y) ** 2
) -> float:
    """Returns 1 - observed disagreement / that of values paired at random (Krippendorff, Content Analysis, 2004).

    Unlike the kappas of Cohen and Fleiss it takes any number of raters, and lets each leave out what they like.

    Args:
        units: the values that raters gave to each unit; units with fewer than two tell nothing.
        distance: of two values, 0 for equal ones; by default that of numbers. `lambda x, y: x != y` for names.

    Returns:
        At most 1, for full agreement; 0 for that of chance; NaN if no unit has two values, or if all values are equal.
    """
    paired = [unit for unit in units if len(unit) > 1]
    values = [value for unit in paired for value in unit]
    if not paired:
        return math.nan
    total = len(values)
    observed = sum(
        sum(distance(first, second) for first in unit for second in unit) / (len(unit) - 1) for unit in paired
    )
    kinds, counts = np.unique(values, return_counts=True)
    by_chance = sum(
        count * other * distance(first, second)
        for first, count in zip(kinds.tolist(), counts.tolist(), strict=True)
        for second, other in zip(kinds.tolist(), counts.tolist(), strict=True)
    ) / (total - 1)
    return 1 - observed / by_chance if by_chance else math.nan
