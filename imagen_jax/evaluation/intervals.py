"""95% intervals of rates and means of images that come in groups, such as several of each prompt.

Images of a prompt are right or wrong together more often than others: intervals that took them for independent would be
too narrow. The variance between groups is measured, and its ratio to that of independent images, the design effect,
says how many independent images the images are worth (Kish, Survey Sampling, 1965; Korn and Graubard, 1998).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from imagen_jax.datasets.shapes.judge import wilson_interval

_UPPER = 0.975  # of a distribution, the upper end of 95%


def rate_of_groups(groups: Sequence[Sequence[bool]]) -> dict[str, float]:
    """Returns a rate over all outcomes with Wilson's interval for as many as they are worth.

    Args:
        groups: outcomes of each group, one at least in all.

    Returns:
        `correct`, `total`, `rate`, `low`, `high`, and `groups`. Where all outcomes are equal, nothing tells how they
        depend on each other, and they count as independent.
    """
    counts = np.array([len(group) for group in groups if len(group)], np.float64)
    correct = np.array([sum(group) for group in groups if len(group)], np.float64)
    total, rate = counts.sum(), correct.sum() / counts.sum()
    effect = _design_effect(correct - rate * counts, rate * (1 - rate) * total)
    low, high = wilson_interval(correct.sum() / effect, total / effect)
    return {
        "correct": int(correct.sum()),
        "total": int(total),
        "rate": float(rate),
        "low": low,
        "high": high,
        "groups": len(counts),
    }


def _design_effect(residuals: np.ndarray, independent: float) -> float:
    """Returns the ratio of the variance between groups to that of independent outcomes, at least 1.

    Args:
        residuals: of the sum of each group.
        independent: the variance that the sum of all would have.
    """
    groups = len(residuals)
    if groups < 2 or independent <= 0:
        return 1.0
    return max(1.0, float((residuals**2).sum()) * groups / (groups - 1) / independent)


def mean_of_groups(groups: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """Returns the mean of all values, with Student's interval from the variance between groups; None for one group."""
    filled = [np.asarray(group, np.float64) for group in groups if len(group)]
    counts = np.array([len(group) for group in filled], np.float64)
    mean = float(np.concatenate(filled).mean())
    residuals = np.array([group.sum() for group in filled]) - mean * counts
    number = len(filled)
    half = None
    if number > 1:
        error = math.sqrt((residuals**2).sum() * number / (number - 1)) / counts.sum()
        half = float(stdtrit(number - 1, _UPPER)) * error
    return {
        "mean": mean,
        "low": None if half is None else mean - half,
        "high": None if half is None else mean + half,
        "total": int(counts.sum()),
        "groups": number,
    }


def mean_of_rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the mean of rates of independent parts, as GenEval's overall score is that of its tasks.

    The interval of the mean has the distances of the rates to their own limits, added as those of independent parts are
    (Zou and Donner, 2008, "MOVER").

    Args:
        rows: with `rate`, `low` and `high`, one at least.
    """
    count = len(rows)
    mean = sum(row["rate"] for row in rows) / count
    below = math.sqrt(sum((row["rate"] - row["low"]) ** 2 for row in rows)) / count
    above = math.sqrt(sum((row["high"] - row["rate"]) ** 2 for row in rows)) / count
    return {"mean": mean, "low": mean - below, "high": mean + above, "parts": count}
