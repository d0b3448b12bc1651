import numpy as np
import pytest

from imagen_jax.diffusion import schedules, timesteps
from imagen_jax.diffusion.timesteps import KARRAS_MAX, KARRAS_MIN, check_steps, karras, quadratic, uniform
from imagen_jax.errors import ConfigError
from tests.goldens.deepfloyd_if import cases

# `lognormal` is for training: float32 cannot represent the times close to 1 at which it has much noise.
SAMPLED = [name for name in schedules.SCHEDULES if name != "lognormal"]

each_schedule = pytest.mark.parametrize(
    "schedule",
    [schedules.get_schedule(name, shift) for name in SAMPLED for shift in (-4.0, 0.0, 4.0)],
    ids=lambda schedule: schedule.name,
)


@each_schedule
@pytest.mark.parametrize("name", [name for name in timesteps.TIMESTEP_SPACINGS if name not in timesteps.SECTIONS])
@pytest.mark.parametrize("steps", [2, 10, 250])
def test_times_decrease_to_zero(schedule, name, steps):
    times = np.asarray(timesteps.get_timestep_schedule(name)(schedule, steps))
    assert times.shape == (steps + 1,)
    assert 0.5 < times[0] <= 1 and times[-1] == 0
    assert (np.diff(times) < 0).all()


@pytest.mark.parametrize("steps", [1, 4])
def test_uniform(steps):
    np.testing.assert_allclose(np.diff(uniform(schedules.cosine(), steps)), -1 / steps, rtol=1e-6)


def test_quadratic():
    times = np.asarray(quadratic(schedules.cosine(), 8))
    assert times[0] == 1
    np.testing.assert_allclose(np.diff(np.sqrt(times)), -1 / 8, rtol=1e-5)


@each_schedule
def test_karras_matches_edm(schedule):
    """Up to the float32 resolution of times close to 1."""
    times = karras(schedule, 20)
    sigmas = np.exp(-np.asarray(schedule.logsnr(times[:-1]), np.float64) / 2)
    sigma_max = min(KARRAS_MAX, float(np.exp(-schedule.logsnr(1.0) / 2)))
    np.testing.assert_allclose(sigmas[[0, -1]], [sigma_max, KARRAS_MIN], rtol=1e-2)
    np.testing.assert_allclose(
        sigmas ** (1 / 7), np.linspace(sigma_max ** (1 / 7), KARRAS_MIN ** (1 / 7), 20), rtol=2e-3
    )


def indices(name, steps, start=1.0):
    """Returns the noise levels at the times of a discrete spacing, counted from 0, from pure noise down."""
    times = np.asarray(timesteps.get_timestep_schedule(name)(schedules.discrete_cosine(), steps, start), np.float64)
    assert times[-1] == 0
    return (np.round(times[:-1] * 1000) - 1).astype(int).tolist()


def test_leading():
    assert indices("leading", 4) == [750, 500, 250, 0]
    assert indices("leading", 100)[:2] == [990, 980]
    assert indices("leading", 30, start=0.5) == indices("leading", 60)[30:]
    with pytest.raises(ConfigError, match="1001 steps are more than the 1000"):
        indices("leading", 1001)


@pytest.mark.parametrize("name", timesteps.SECTIONS)
def test_lists_are_those_of_diffusers(name):
    with np.load(cases.GOLDEN) as golden:
        assert indices(name, sum(timesteps.SECTIONS[name])) == golden[f"timesteps {name}"].tolist()


def test_lists_have_their_own_number_of_steps():
    assert indices("fast27", 19, start=0.7) == indices("fast27", 27)[8:]
    for steps in (26, 28):
        with pytest.raises(ConfigError, match=f"num_inference_steps {steps} is not that of.*'fast27': set it to 27"):
            indices("fast27", steps)


@pytest.mark.parametrize("steps", [0, -3])
def test_too_few_steps_raise(steps):
    with pytest.raises(ConfigError, match=f"steps {steps}"):
        check_steps(steps)


def test_unknown_spacing_raises():
    with pytest.raises(ConfigError, match="timestep_spacing 'cubic'.*uniform, quadratic, karras"):
        timesteps.get_timestep_schedule("cubic")
