"""The faults that need one run alone; ``make faults`` has all of them, with more trials."""

import pytest

from tests.faults.harness import Bench
from tests.faults.rows import ROWS

FEW = {"flip": 200, "cut": 10, "mesh": 3, "model": 1}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("row, trials", FEW.items())
def test_a_fault_does_no_harm(bench, row, trials):
    result = ROWS[row][0](bench, trials)
    assert result.trials >= trials
    assert result.held == result.trials, result
