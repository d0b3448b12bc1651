import dataclasses

import jax
import numpy as np
import pytest
from scipy import stats

from imagen_jax.diffusion import schedules
from imagen_jax.diffusion.noise_augmentation import AugLevels
from imagen_jax.errors import ConfigError

COUNT = 20_000
UNIFORM = AugLevels("uniform", (0.0, 1.0), -3.0, 0.5)
LOGNORMAL = dataclasses.replace(UNIFORM, distribution="lognormal")


def draw(levels, schedule=None):
    return np.asarray(levels.draw(jax.random.key(0), COUNT, schedule or schedules.cosine()))


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (0.0, 0.35), (0.2, 0.3)])
def test_uniform_levels_are_uniform_on_their_interval(low, high):
    levels = draw(dataclasses.replace(UNIFORM, interval=(low, high)))
    assert stats.kstest(levels, stats.uniform(low, high - low).cdf).pvalue > 0.01


def test_an_interval_of_one_level_is_a_fixed_one():
    np.testing.assert_allclose(draw(dataclasses.replace(UNIFORM, interval=(0.25, 0.25))), 0.25)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "sigmoid"])
@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_the_noise_of_lognormal_levels_is_lognormal_whatever_the_schedule(schedule, shift):
    schedule = schedules.by_name(schedule, shift)
    levels = draw(dataclasses.replace(LOGNORMAL, mean=-1.0, std=0.7), schedule)
    assert ((levels > 0) & (levels < 1)).all()
    log_noise = np.asarray(-schedule.logsnr(levels) / 2)  # ln(sigma / alpha)
    assert stats.kstest(log_noise, stats.norm(-1.0, 0.7).cdf).pvalue > 0.01


def test_lognormal_levels_that_the_schedule_does_not_have_are_its_ends():
    for mean, end in ((-30.0, 0.0), (30.0, 1.0)):
        np.testing.assert_array_equal(draw(dataclasses.replace(LOGNORMAL, mean=mean)), end)


@pytest.mark.parametrize("levels", [UNIFORM, LOGNORMAL], ids=lambda levels: levels.distribution)
def test_the_key_gives_the_levels_and_each_example_has_its_own(levels):
    drawn = draw(levels)
    np.testing.assert_array_equal(draw(levels), drawn)
    assert len(np.unique(drawn)) > 0.9 * COUNT
    other = np.asarray(levels.draw(jax.random.key(1), COUNT, schedules.cosine()))
    assert abs(np.corrcoef(drawn, other)[0, 1]) < 0.03


def test_a_level_that_training_never_draws_is_refused_in_sampling():
    trained = dataclasses.replace(UNIFORM, interval=(0.1, 0.35))
    trained.check_sampling(0.1)
    trained.check_sampling(0.35)
    LOGNORMAL.check_sampling(0.9)  # unlikely, but drawn
    for level in (0.0, 0.5):
        with pytest.raises(
            ConfigError, match=rf"aug_level {level} is not in \[0.1, 0.35\], the levels that the stage is"
        ):
            trained.check_sampling(level)
