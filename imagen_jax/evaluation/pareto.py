"""Which of several settings are optimal where two metrics disagree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pareto_optimal(gains: Sequence[float], costs: Sequence[float]) -> np.ndarray:
    """Returns which points no other point dominates, bool [N].

    A point dominates another if its gain is not less and its cost not more, and one of the two is better. Points that
    are equal in both do not dominate each other. A value that is not finite is worse than any other.

    Args:
        gains: N values of which more is better, such as CLIP scores.
        costs: N values of which less is better, such as Frechet distances.
    """
    gain = np.nan_to_num(np.asarray(gains, float), nan=-np.inf)
    cost = np.nan_to_num(np.asarray(costs, float), nan=np.inf)
    at_least = (gain[:, None] >= gain) & (cost[:, None] <= cost)  # [i, j]: i is as good as j in both
    better = (gain[:, None] > gain) | (cost[:, None] < cost)
    return ~(at_least & better).any(axis=0)
