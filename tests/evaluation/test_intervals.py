"""Intervals of rates and means of images in groups."""

import numpy as np
import pytest

from imagen_jax.datasets.shapes.judge import wilson_interval
from imagen_jax.evaluation.intervals import mean_of_groups, mean_of_rates, rate_of_groups


def test_rates_of_single_images_have_wilsons_interval():
    row = rate_of_groups([[True]] * 7 + [[False]] * 13)
    assert (row["correct"], row["total"], row["groups"]) == (7, 20, 20)
    # the measured variance is that of independent images, but for the factor n / (n - 1)
    assert (row["low"], row["high"]) == pytest.approx(wilson_interval(7 * 19 / 20, 19), abs=1e-6)


def test_images_that_repeat_each_other_count_once():
    once = rate_of_groups([[index % 3 == 0] for index in range(30)])
    repeated = rate_of_groups([[index % 3 == 0] * 8 for index in range(30)])
    assert repeated["total"] == 8 * once["total"] and repeated["rate"] == once["rate"]
    assert (repeated["low"], repeated["high"]) == pytest.approx((once["low"], once["high"]))


def test_equal_outcomes_count_as_independent():
    assert rate_of_groups([[True, True]] * 5)["low"] == pytest.approx(wilson_interval(10, 10)[0])


def test_rates_cover_the_truth():
    """Of 400 samples with images that depend on their prompts, about 95% of the intervals contain the rate."""
    rng = np.random.default_rng(0)
    covered = naive = 0
    for _ in range(400):
        prompts = rng.beta(1, 1, 40)  # the rate of each prompt: the mean is 0.5
        groups = [list(rng.random(4) < rate) for rate in prompts]
        row = rate_of_groups(groups)
        low, high = wilson_interval(row["correct"], row["total"])
        covered += row["low"] <= 0.5 <= row["high"]
        naive += low <= 0.5 <= high
    assert 0.92 <= covered / 400 <= 0.98
    assert naive / 400 < 0.9


def test_means_of_groups():
    row = mean_of_groups([[1.0, 3.0], [2.0, 2.0], [5.0, 5.0]])
    assert row["mean"] == 3 and row["total"] == 6
    assert row["high"] - row["mean"] == pytest.approx(4.302653 * np.std([2, 2, 5], ddof=1) / np.sqrt(3))
    assert mean_of_groups([[1.0, 3.0]])["low"] is None


def test_mean_of_rates():
    rows = [rate_of_groups([[True]] * k + [[False]] * (50 - k)) for k in (10, 30)]
    overall = mean_of_rates(rows)
    assert overall["mean"] == pytest.approx(0.4)
    assert rows[0]["low"] < overall["low"] < 0.4 < overall["high"] < rows[1]["high"]


@pytest.mark.parametrize("total", [1, 4, 61, 130])
def test_interval_has_its_rate_whatever_is_rounded(total):
    assert wilson_interval(total, total)[1] == 1 and wilson_interval(0, total)[0] == 0
