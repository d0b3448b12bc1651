import pytest

from benchmarks import convergence


@pytest.mark.parametrize(
    "sampler, spacing, order", [("ddim", "karras", 1), ("heun", "karras", 2), ("heun", "uniform", 1)]
)
def test_order(sampler, spacing, order):
    assert convergence._order(sampler, "sigmoid", spacing, [64, 128, 256], 64) == pytest.approx(order, abs=0.2)
