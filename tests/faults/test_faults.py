"""Faults that need only one run; `make faults` runs all of them, with more trials."""

import pytest

from tests.faults.harness import Bench
from tests.faults.rows import ROWS

TRIALS = {"flip": 200, "cut": 10, "mesh": 3, "model": 1, "beside": 2, "cut_converted": 3, "flip_pipeline": 100}
SLOW = ("flip", "beside", "flip_pipeline")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize(
    "row, trials", [pytest.param(*item, marks=[pytest.mark.slow] * (item[0] in SLOW)) for item in TRIALS.items()]
)
def test_fault(bench, row, trials):
    result = ROWS[row][0](bench, trials)
    assert result.trials >= trials
    assert result.passed == result.trials, result
