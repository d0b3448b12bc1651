import dataclasses

import jax
import numpy as np
import pytest
from scipy import stats

from imagen_jax.diffusion import schedules
from imagen_jax.diffusion.noise_augmentation import AugLevelDistribution
from imagen_jax.errors import ConfigError

COUNT = 20_000
UNIFORM = AugLevelDistribution("uniform", (0.0, 1.0), -3.0, 0.5)
LOGNORMAL = dataclasses.replace(UNIFORM, distribution="lognormal")


def sample(levels, schedule=None):
    return np.asarray(levels.sample(jax.random.key(0), COUNT, schedule or schedules.cosine()))


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (0.0, 0.35), (0.2, 0.3)])
def test_uniform(low, high):
    levels = sample(dataclasses.replace(UNIFORM, interval=(low, high)))
    assert stats.kstest(levels, stats.uniform(low, high - low).cdf).pvalue > 0.01


def test_empty_interval_is_a_fixed_level():
    np.testing.assert_allclose(sample(dataclasses.replace(UNIFORM, interval=(0.25, 0.25))), 0.25)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "sigmoid"])
@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_lognormal_noise_under_any_schedule(schedule, shift):
    schedule = schedules.get_schedule(schedule, shift)
    levels = sample(dataclasses.replace(LOGNORMAL, mean=-1.0, std=0.7), schedule)
    assert ((levels > 0) & (levels < 1)).all()
    log_noise = np.asarray(-schedule.logsnr(levels) / 2)  # ln(sigma / alpha)
    assert stats.kstest(log_noise, stats.norm(-1.0, 0.7).cdf).pvalue > 0.01


def test_lognormal_levels_are_clipped():
    for mean, end in ((-30.0, 0.0), (30.0, 1.0)):
        np.testing.assert_array_equal(sample(dataclasses.replace(LOGNORMAL, mean=mean)), end)


@pytest.mark.parametrize("levels", [UNIFORM, LOGNORMAL], ids=lambda levels: levels.distribution)
def test_levels_depend_on_key_and_example(levels):
    samples = sample(levels)
    np.testing.assert_array_equal(sample(levels), samples)
    assert len(np.unique(samples)) > 0.9 * COUNT
    other = np.asarray(levels.sample(jax.random.key(1), COUNT, schedules.cosine()))
    assert abs(np.corrcoef(samples, other)[0, 1]) < 0.03


def test_untrained_sampling_level_raises():
    trained = dataclasses.replace(UNIFORM, interval=(0.1, 0.35))
    trained.check_sampling(0.1)
    trained.check_sampling(0.35)
    LOGNORMAL.check_sampling(0.9)  # unlikely, but possible
    for level in (0.0, 0.5):
        with pytest.raises(ConfigError, match=rf"aug_level {level} is not in \[0.1, 0.35\]"):
            trained.check_sampling(level)
