import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import schedules
from imagen_jax.diffusion.schedules import (
    LOGSNR_MAX,
    LOGSNR_MIN,
    alpha_from_logsnr,
    cosine_time,
    logsnr_from_cosine_time,
    sigma_from_logsnr,
)
from imagen_jax.errors import ConfigError

TIMES = np.linspace(0, 1, 1001, dtype=np.float32)

SHIFTS = (-4.0, 0.0, 4.0)

each_schedule = pytest.mark.parametrize(
    "schedule",
    [schedules.get_schedule(name, shift) for name in schedules.SCHEDULES for shift in SHIFTS],
    ids=lambda schedule: schedule.name,
)


@each_schedule
def test_logsnr_decreases_within_its_range(schedule):
    logsnr = np.asarray(schedule.logsnr(TIMES))
    assert (np.diff(logsnr) < 0).all()
    assert logsnr[-1] > LOGSNR_MIN - 1e-5 and logsnr[0] < LOGSNR_MAX + 1e-5


@each_schedule
def test_inverse_logsnr_inverts_logsnr(schedule):
    np.testing.assert_allclose(schedule.inverse_logsnr(schedule.logsnr(TIMES)), TIMES, atol=1e-6)


@each_schedule
def test_logsnr_inverts_inverse_logsnr(schedule):
    """Up to the float32 resolution of times close to 1."""
    logsnr = np.linspace(-9, 15, 97, dtype=np.float32)
    time = np.asarray(schedule.inverse_logsnr(logsnr))
    # the inverse of the linear schedule exceeds 1 at such noise
    later, earlier = (np.where(time > 1, time, np.clip(time + ulps * np.float32(2**-23), 0, 1)) for ulps in (1, -1))
    assert (schedule.logsnr(later) < logsnr + 2e-2).all()
    assert (schedule.logsnr(earlier) > logsnr - 2e-2).all()
    early = time < 0.999
    assert early.sum() > 30
    np.testing.assert_allclose(schedule.logsnr(time)[early], logsnr[early], atol=2e-2)


@each_schedule
def test_variance_preserving(schedule):
    alpha, sigma = np.asarray(schedule.alpha(TIMES)), np.asarray(schedule.sigma(TIMES))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=1e-6)
    np.testing.assert_allclose(2 * np.log(alpha / sigma), schedule.logsnr(TIMES), atol=1e-4)


NEAR_ENDS = np.logspace(-8, -1, 500).astype(np.float32)
ALL_TIMES = np.unique(np.concatenate([TIMES, NEAR_ENDS, 1 - NEAR_ENDS]))


def cosine_in_float64(t, shift):
    """Returns the logsnr of the shifted cosine schedule at t [N], from the smaller of the angle and its complement."""
    low, high = (math.atan(math.exp(-(20 - max(sign * shift, 0)) / 2)) for sign in (1, -1))
    width = math.pi / 2 - low - high
    angle, complement = low + t * width, high + (1 - t) * width
    return shift + np.where(t < 0.5, -2 * np.log(np.tan(angle)), 2 * np.log(np.tan(complement)))


@pytest.mark.parametrize("shift", [-4.0, -2.77, 0.0, 4.0])
def test_cosine_is_accurate_at_both_ends(shift):
    schedule = schedules.get_schedule("cosine", shift)
    exact = cosine_in_float64(ALL_TIMES.astype(np.float64), shift)
    for logsnr in (schedule.logsnr, jax.jit(schedule.logsnr)):
        np.testing.assert_allclose(logsnr(ALL_TIMES), exact, rtol=0, atol=1e-5)


def test_logsnr_from_cosine_time_is_accurate_at_both_ends():
    levels = ALL_TIMES[(ALL_TIMES > 0) & (ALL_TIMES < 1)]
    angle, complement = levels.astype(np.float64) * np.pi / 2, (1 - levels.astype(np.float64)) * np.pi / 2
    exact = np.where(levels < 0.5, -2 * np.log(np.tan(angle)), 2 * np.log(np.tan(complement)))
    np.testing.assert_allclose(logsnr_from_cosine_time(levels), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["cosine", "sigmoid"])
@pytest.mark.parametrize("shift", SHIFTS)
def test_schedules_are_symmetric(name, shift):
    """As alpha and sigma change places when time runs backward, with the opposite shift."""
    schedule, mirrored = schedules.get_schedule(name, shift), schedules.get_schedule(name, -shift)
    late = 1 - NEAR_ENDS  # and so is 1 - late exact
    np.testing.assert_allclose(schedule.logsnr(late), -mirrored.logsnr(1 - late), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
@pytest.mark.parametrize("shift", SHIFTS)
def test_endpoints(name, shift):
    # a shift away from an end scales the deviation there
    schedule = schedules.get_schedule(name, shift)
    assert schedule.sigma(0.0) < 1e-4 * np.exp(max(-shift, 0) / 2)
    assert schedule.alpha(1.0) < 0.01 * np.exp(max(shift, 0) / 2)


def test_cosine():
    np.testing.assert_allclose(schedules.cosine().alpha(TIMES), np.cos(np.pi / 2 * TIMES), atol=1e-4)


def test_cosine_time_is_the_time_of_cosine():
    # to 3e-5: the schedule is rescaled in time by as much
    np.testing.assert_allclose(cosine_time(schedules.cosine().logsnr(TIMES)), TIMES, atol=4e-5)


def test_logsnr_from_cosine_time_inverts_cosine_time():
    levels = TIMES[1:-1]
    np.testing.assert_allclose(cosine_time(logsnr_from_cosine_time(levels)), levels, atol=1e-6)


def test_cosine_time_is_the_angle_of_alpha_and_sigma():
    schedule = schedules.linear()
    angle = np.arctan2(schedule.sigma(TIMES), schedule.alpha(TIMES))
    np.testing.assert_allclose(cosine_time(schedule.logsnr(TIMES)), angle * 2 / np.pi, atol=1e-5)


def test_linear_matches_discrete_betas():
    """Up to the error of the continuous limit: log(1 - β) ≈ -β differs by at most Σβ²/2 = 0.067 in log alpha²."""
    products = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    squares = np.asarray(schedules.linear().alpha(np.arange(1, 1001) / 1000), np.float64) ** 2
    np.testing.assert_allclose(squares, products, atol=4e-3)
    np.testing.assert_allclose(np.log(squares), np.log(products), atol=0.07)


def test_linear_with_constant_beta():
    """With a constant β the integral is β·steps·t."""
    flat = schedules.linear(beta_start=0.01, beta_end=0.01, steps=100)
    np.testing.assert_allclose(flat.alpha(TIMES[1:]), np.exp(-TIMES[1:] / 2), rtol=1e-5)


def test_sigmoid():
    curve = 1 / (1 + np.exp(6 * TIMES.astype(np.float64) - 3))
    scaled = (curve - curve[-1]) / (curve[0] - curve[-1])
    np.testing.assert_allclose(np.square(schedules.sigmoid().alpha(TIMES)), scaled, atol=1e-6)


@pytest.mark.parametrize("start, end, tau", [(0.0, 3.0, 0.5), (-3.0, 1.0, 1.0)])
def test_sigmoid_start_end_tau(start, end, tau):
    curve = 1 / (1 + np.exp((start + (end - start) * TIMES.astype(np.float64)) / tau))
    scaled = (curve - curve[-1]) / (curve[0] - curve[-1])
    schedule = schedules.sigmoid(start, end, tau)
    np.testing.assert_allclose(np.square(schedule.alpha(TIMES)), scaled, atol=1e-6)
    np.testing.assert_allclose(schedule.inverse_logsnr(schedule.logsnr(TIMES)), TIMES, atol=1e-6)


def test_lognormal_quantiles():
    schedule = schedules.lognormal(p_mean=-0.4, p_std=1.5)
    times = (np.arange(20_000, dtype=np.float32) + 0.5) / 20_000
    noise = np.sort(np.log(np.asarray(schedule.sigma(times) / schedule.alpha(times), np.float64)))
    assert noise.mean() == pytest.approx(-0.4, abs=1e-3)
    assert noise.std() == pytest.approx(1.5, abs=2e-3)
    for deviations, fraction in ((-2, 0.02275), (-1, 0.15866), (1, 0.84134)):
        assert (noise < -0.4 + 1.5 * deviations).mean() == pytest.approx(fraction, abs=1e-3)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_endpoints_are_finite(name):
    schedule = schedules.get_schedule(name)
    for t in (0.0, 1e-12, 1.0):
        for logsnr in (schedule.logsnr, jax.jit(schedule.logsnr)):
            value = logsnr(jnp.float32(t))
            assert np.isfinite([value, alpha_from_logsnr(value), sigma_from_logsnr(value)]).all()
            assert LOGSNR_MIN - 0.01 <= value <= LOGSNR_MAX + 0.01


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_resolution_shift_preserves_snr_of_block_means(name):
    """Averaging n × n pixels divides the noise by n: the SNR is n² times as large."""
    n = 4
    plain, large = schedules.get_schedule(name), schedules.get_schedule(name, 2 * np.log(64 / (n * 64)))
    middle = TIMES[50:950]
    np.testing.assert_allclose(large.logsnr(middle) + np.log(n**2), plain.logsnr(middle), atol=0.1)


def test_alpha_and_sigma_from_logsnr():
    logsnr = jnp.asarray([-3.0, 0.0, 3.0])
    np.testing.assert_allclose(alpha_from_logsnr(logsnr)[1], np.sqrt(0.5), rtol=1e-6)
    np.testing.assert_allclose(alpha_from_logsnr(logsnr) ** 2 + sigma_from_logsnr(logsnr) ** 2, 1, rtol=1e-6)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
@pytest.mark.parametrize("shift", [-2.0, 3.0])
def test_shift_is_added_to_logsnr(name, shift):
    # away from the ends, where the schedule is rescaled in time to the range of logsnr
    plain, shifted = schedules.get_schedule(name), schedules.get_schedule(name, shift)
    np.testing.assert_allclose(shifted.logsnr(TIMES[50:950]), plain.logsnr(TIMES[50:950]) + shift, atol=0.1)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_schedule_name(name):
    assert schedules.get_schedule(name).name == name


def test_unknown_name_raises():
    with pytest.raises(ConfigError, match="'cosin'.*cosine, linear"):
        schedules.get_schedule("cosin")
