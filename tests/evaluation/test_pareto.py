import numpy as np
import pytest

from imagen_jax.evaluation.pareto import pareto_optimal


def dominated(gains, costs, index):
    """Whether another point is as good in both, and better in one: the definition."""
    return any(
        gain >= gains[index] and cost <= costs[index] and (gain > gains[index] or cost < costs[index])
        for gain, cost in zip(gains, costs, strict=True)
    )


@pytest.mark.parametrize("seed", range(5))
def test_optimal_points_are_those_that_none_dominates(seed):
    """Small integers, so that there are ties in one metric and in both."""
    gains, costs = np.random.default_rng(seed).integers(0, 6, (2, 30))
    expected = [not dominated(gains, costs, index) for index in range(30)]
    assert pareto_optimal(gains, costs).tolist() == expected
    assert 0 < sum(expected) < 30


def test_equal_points_are_both_optimal():
    assert pareto_optimal([1, 1, 0], [2, 2, 2]).tolist() == [True, True, False]


def test_what_is_not_finite_is_worst():
    assert pareto_optimal([np.nan, 1, 1], [1, np.nan, 5]).tolist() == [True, False, True]
    assert pareto_optimal([np.nan, 1], [2, 1]).tolist() == [False, True]
