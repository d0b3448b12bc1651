"""The comparison of drafts: equal numbers of calls, and the distance that needs no weights."""

import numpy as np
import pytest

from benchmarks import drafts
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.frechet import frechet_distance
from imagen_jax.stages.stage_sampler import strength_steps


@pytest.mark.parametrize("strength", [0.1, 0.4, 0.6, 0.8, 1.0])
def test_methods_call_the_network_equally_often(strength):
    for calls in range(1, 20):
        steps = drafts.steps_of(calls, strength)
        assert steps is not None
        assert strength_steps(steps, strength) == calls


def test_distance_of_reduced_images():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, 16, 32, 3), np.uint8)
    here, there = (drafts.reduced_statistics(part) for part in ([images[:100], images[100:]], [images]))
    assert frechet_distance(here, there) < 1e-6
    darker = drafts.reduced_statistics([images // 2])
    # of the means alone, at least
    assert frechet_distance(here, darker) > np.square(here.mean - darker.mean).sum() - 1e-6
    with pytest.raises(ConfigError, match="reduced"):
        drafts.reduced_statistics([images[:, :10]])


def test_row():
    row = drafts.format_row(drafts.Result("base alone", 4, None, 0.5, 0.4, 0.6, 12.34, 0.01))
    assert row == "| base alone | 4 | 50.0% (40.0%–60.0%) | 12.34 | 0.0100 |"
