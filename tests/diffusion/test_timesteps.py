import numpy as np
import pytest

from imagen_jax.diffusion import schedules, timesteps
from imagen_jax.diffusion.timesteps import KARRAS_MAX, KARRAS_MIN, check_steps, karras, quadratic, uniform
from imagen_jax.errors import ConfigError

# Log-normal noise is for training: float32 does not hold the times next to 1 at which it has much noise.
SAMPLED = [name for name in schedules.SCHEDULES if name != "lognormal"]

each_schedule = pytest.mark.parametrize(
    "schedule",
    [schedules.by_name(name, shift) for name in SAMPLED for shift in (-4.0, 0.0, 4.0)],
    ids=lambda schedule: schedule.name,
)


@each_schedule
@pytest.mark.parametrize("name", timesteps.GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 10, 250])
def test_times_fall_to_clean(schedule, name, steps):
    times = np.asarray(timesteps.by_name(name)(schedule, steps))
    assert times.shape == (steps + 1,)
    assert 0.5 < times[0] <= 1 and times[-1] == 0
    assert (np.diff(times) < 0).all()


@pytest.mark.parametrize("steps", [1, 4])
def test_uniform_times_are_equally_far_apart(steps):
    np.testing.assert_allclose(np.diff(uniform(schedules.cosine(), steps)), -1 / steps, rtol=1e-6)


def test_the_roots_of_quadratic_times_are_equally_far_apart():
    times = np.asarray(quadratic(schedules.cosine(), 8))
    assert times[0] == 1
    np.testing.assert_allclose(np.diff(np.sqrt(times)), -1 / 8, rtol=1e-5)


@each_schedule
def test_karras_times_are_those_of_edm(schedule):
    """To what float32 holds of a time next to 1."""
    times = karras(schedule, 20)
    levels = np.exp(-np.asarray(schedule.logsnr(times[:-1]), np.float64) / 2)
    most = min(KARRAS_MAX, float(np.exp(-schedule.logsnr(1.0) / 2)))
    np.testing.assert_allclose(levels[[0, -1]], [most, KARRAS_MIN], rtol=1e-2)
    np.testing.assert_allclose(levels ** (1 / 7), np.linspace(most ** (1 / 7), KARRAS_MIN ** (1 / 7), 20), rtol=2e-3)


@pytest.mark.parametrize("steps", [0, -3])
def test_too_few_steps_are_refused(steps):
    with pytest.raises(ConfigError, match=f"steps {steps} is too few"):
        check_steps(steps)


def test_an_unknown_grid_is_refused():
    with pytest.raises(ConfigError, match="grid 'cubic' is not known: choose one of uniform, quadratic, karras"):
        timesteps.by_name("cubic")
