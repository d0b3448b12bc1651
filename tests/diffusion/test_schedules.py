import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import schedules
from imagen_jax.diffusion.schedules import LOGSNR_MAX, LOGSNR_MIN, logsnr_of_angle, noise_angle, signal
from imagen_jax.errors import ConfigError

TIMES = np.linspace(0, 1, 1001, dtype=np.float32)

SHIFTS = (-4.0, 0.0, 4.0)

each_schedule = pytest.mark.parametrize(
    "schedule",
    [schedules.by_name(name, shift) for name in schedules.SCHEDULES for shift in SHIFTS],
    ids=lambda schedule: schedule.name,
)


@each_schedule
def test_logsnr_strictly_falls_within_its_range(schedule):
    logsnr = np.asarray(schedule.logsnr(TIMES))
    assert (np.diff(logsnr) < 0).all()
    # float32 holds the tangent of an angle next to a right angle to about 0.3 %
    assert logsnr[-1] > LOGSNR_MIN - 0.01 and logsnr[0] < LOGSNR_MAX + 0.01


@each_schedule
def test_time_inverts_logsnr(schedule):
    np.testing.assert_allclose(schedule.time(schedule.logsnr(TIMES)), TIMES, atol=1e-6)


@each_schedule
def test_logsnr_inverts_time(schedule):
    """As nearly as times next to 1 are told apart in float32."""
    logsnr = np.linspace(-9, 15, 97, dtype=np.float32)
    time = np.asarray(schedule.time(logsnr))
    # the linear schedule goes on after 1, where it reaches so much noise
    later, earlier = (np.where(time > 1, time, np.clip(time + ulps * np.float32(2**-23), 0, 1)) for ulps in (1, -1))
    assert (schedule.logsnr(later) < logsnr + 2e-2).all()
    assert (schedule.logsnr(earlier) > logsnr - 2e-2).all()
    early = time < 0.999
    assert early.sum() > 30
    np.testing.assert_allclose(schedule.logsnr(time)[early], logsnr[early], atol=2e-2)


@each_schedule
def test_variance_is_preserved_and_logsnr_is_its_ratio(schedule):
    alpha, sigma = np.asarray(schedule.alpha(TIMES)), np.asarray(schedule.sigma(TIMES))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=1e-6)
    np.testing.assert_allclose(2 * np.log(alpha / sigma), schedule.logsnr(TIMES), atol=1e-4)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
@pytest.mark.parametrize("shift", SHIFTS)
def test_it_starts_clean_and_ends_in_noise(name, shift):
    # what an end lacks is multiplied by a shift away from it
    schedule = schedules.by_name(name, shift)
    assert schedule.sigma(0.0) < 1e-4 * np.exp(max(-shift, 0) / 2)
    assert schedule.alpha(1.0) < 0.01 * np.exp(max(shift, 0) / 2)


def test_cosine_is_a_cosine():
    np.testing.assert_allclose(schedules.cosine().alpha(TIMES), np.cos(np.pi / 2 * TIMES), atol=1e-4)


def test_noise_angle_is_the_time_of_cosine():
    # to 3e-5: the ends of cosine are drawn in by as much
    np.testing.assert_allclose(noise_angle(schedules.cosine().logsnr(TIMES)), TIMES, atol=4e-5)


def test_an_angle_has_the_logsnr_that_it_is_of():
    angles = TIMES[1:-1]
    np.testing.assert_allclose(noise_angle(logsnr_of_angle(angles)), angles, atol=1e-6)


def test_noise_angle_is_that_of_alpha_and_sigma():
    schedule = schedules.linear()
    angle = np.arctan2(schedule.sigma(TIMES), schedule.alpha(TIMES))
    np.testing.assert_allclose(noise_angle(schedule.logsnr(TIMES)), angle * 2 / np.pi, atol=1e-5)


def test_linear_is_the_cumulative_product_of_1000_betas():
    """Up to what tells the limit of many steps from 1000: log(1 - β) from -β, at most Σβ²/2 = 0.067 in log alpha²."""
    products = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    squares = np.asarray(schedules.linear().alpha(np.arange(1, 1001) / 1000), np.float64) ** 2
    np.testing.assert_allclose(squares, products, atol=4e-3)
    np.testing.assert_allclose(np.log(squares), np.log(products), atol=0.07)


def test_linear_takes_its_betas():
    """With a constant β the integral is β·steps·t."""
    flat = schedules.linear(beta_start=0.01, beta_end=0.01, steps=100)
    np.testing.assert_allclose(flat.alpha(TIMES[1:]), np.exp(-TIMES[1:] / 2), rtol=1e-5)


def test_sigmoid_is_the_logistic_curve_scaled_to_reach_both_ends():
    curve = 1 / (1 + np.exp(6 * TIMES.astype(np.float64) - 3))
    scaled = (curve - curve[-1]) / (curve[0] - curve[-1])
    np.testing.assert_allclose(np.square(schedules.sigmoid().alpha(TIMES)), scaled, atol=1e-6)


@pytest.mark.parametrize("start, end, tau", [(0.0, 3.0, 0.5), (-3.0, 1.0, 1.0)])
def test_sigmoid_takes_its_part_of_the_curve(start, end, tau):
    curve = 1 / (1 + np.exp((start + (end - start) * TIMES.astype(np.float64)) / tau))
    scaled = (curve - curve[-1]) / (curve[0] - curve[-1])
    schedule = schedules.sigmoid(start, end, tau)
    np.testing.assert_allclose(np.square(schedule.alpha(TIMES)), scaled, atol=1e-6)
    np.testing.assert_allclose(schedule.time(schedule.logsnr(TIMES)), TIMES, atol=1e-6)


def test_uniform_times_of_lognormal_have_noise_whose_logarithm_is_normal():
    schedule = schedules.lognormal(p_mean=-0.4, p_std=1.5)
    times = (np.arange(20_000, dtype=np.float32) + 0.5) / 20_000
    noise = np.sort(np.log(np.asarray(schedule.sigma(times) / schedule.alpha(times), np.float64)))
    assert noise.mean() == pytest.approx(-0.4, abs=1e-3)
    assert noise.std() == pytest.approx(1.5, abs=2e-3)
    for deviations, share in ((-2, 0.02275), (-1, 0.15866), (1, 0.84134)):
        assert (noise < -0.4 + 1.5 * deviations).mean() == pytest.approx(share, abs=1e-3)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_solvers_get_finite_numbers_at_both_ends(name):
    schedule = schedules.by_name(name)
    for t in (0.0, 1e-12, 1.0):
        for logsnr in (schedule.logsnr, jax.jit(schedule.logsnr)):
            found = logsnr(jnp.float32(t))
            assert np.isfinite([found, signal(found), signal(-found)]).all()
            assert LOGSNR_MIN - 0.01 <= found <= LOGSNR_MAX + 0.01


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_the_shift_by_resolution_shows_the_mean_of_a_block_as_a_pixel_was_seen(name):
    """The mean of n × n pixels has the noise of one, divided by n: its SNR is n² times as large."""
    n = 4
    plain, large = schedules.by_name(name), schedules.by_name(name, 2 * np.log(64 / (n * 64)))
    middle = TIMES[50:950]
    np.testing.assert_allclose(large.logsnr(middle) + np.log(n**2), plain.logsnr(middle), atol=0.1)


def test_signal_of_opposite_logsnrs():
    logsnr = jnp.asarray([-3.0, 0.0, 3.0])
    np.testing.assert_allclose(signal(logsnr)[1], np.sqrt(0.5), rtol=1e-6)
    np.testing.assert_allclose(signal(logsnr) ** 2 + signal(-logsnr) ** 2, 1, rtol=1e-6)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
@pytest.mark.parametrize("shift", [-2.0, 3.0])
def test_a_shift_is_added_to_logsnr(name, shift):
    # away from the ends, which are drawn in to the range; the time is drawn in with them
    plain, shifted = schedules.by_name(name), schedules.by_name(name, shift)
    np.testing.assert_allclose(shifted.logsnr(TIMES[50:950]), plain.logsnr(TIMES[50:950]) + shift, atol=0.1)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_a_schedule_has_the_name_it_is_known_by(name):
    assert schedules.by_name(name).name == name


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match="'cosin'.*cosine, linear"):
        schedules.by_name("cosin")
