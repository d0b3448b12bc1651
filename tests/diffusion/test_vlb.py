import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import schedules, vlb
from imagen_jax.diffusion.process import add_noise, learned_log_variance, log_variance_bounds, posterior_mean
from imagen_jax.diffusion.vlb import _LOG_LIKELIHOOD_MIN, _NUM_TIMESTEPS, _discretized_log_likelihood, _gaussian_kl

vlb_loss = jax.jit(vlb.vlb_loss, static_argnames=("schedule", "steps"))

each_schedule = pytest.mark.parametrize(
    "schedule", [make() for make in schedules.SCHEDULES.values()], ids=lambda s: s.name
)
# Steps of the chain from nearly clean to nearly pure noise, without the last one, to 0.
TIMES = np.float32([0.002, 0.01, 0.3, 0.7, 0.99])


def normal(value, mean, log_variance):
    return np.exp(-((value - mean) ** 2) / (2 * np.exp(log_variance)) - log_variance / 2) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize("mean, log_variance", [(0.0, 0.0), (0.7, -2.0), (-1.5, 1.3), (0.0, 1e-4)])
def test_gaussian_kl_equals_integral(mean, log_variance):
    other_mean, other = -0.2, 0.4
    value = np.linspace(-15, 15, 300_001)
    p, q = normal(value, mean, log_variance), normal(value, other_mean, other)
    integral = np.sum(np.where(p > 0, p * np.log(np.maximum(p, 1e-300) / q), 0)) * (value[1] - value[0])
    kl = _gaussian_kl(*map(jnp.float32, (mean, log_variance, other_mean, other)))
    assert float(kl) == pytest.approx(integral, rel=1e-4)


def test_gaussian_kl_is_zero_only_for_equal_gaussians():
    rng = np.random.default_rng(0)
    mean, log_variance, off, ratio = rng.standard_normal((4, 1000)).astype(np.float32)
    np.testing.assert_array_equal(_gaussian_kl(mean, log_variance, mean, log_variance), 0)
    assert (np.asarray(_gaussian_kl(mean, log_variance, mean + off, log_variance + ratio)) > 0).all()


def values(highest=255):
    """Returns all values of an image of integers, scaled to [-1, 1]."""
    return jnp.arange(highest + 1) / (highest / 2) - 1


@pytest.mark.parametrize("log_deviation", [-3.0, -1.0, 1.0])
@pytest.mark.parametrize("mean", [-1.3, -0.4, 0.001, 1.0])
def test_bin_probabilities_sum_to_one(mean, log_deviation):
    likelihood = np.exp(_discretized_log_likelihood(values(), jnp.full(256, mean), jnp.full(256, 2 * log_deviation)))
    assert likelihood.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("mean, log_deviation", [(-0.4, -6.0), (0.001, -3.0), (1.0, -1.0)])
def test_16_bit_bin_probabilities_sum_to_one(mean, log_deviation):
    gaussian = jnp.full(65536, mean), jnp.full(65536, 2 * log_deviation)
    likelihood = np.exp(_discretized_log_likelihood(values(65535), *gaussian, half_bin=1 / 65535))
    assert likelihood.sum() == pytest.approx(1, abs=1e-4)


def test_bin_probability_equals_integral():
    mean, log_variance = 0.1, -3.0
    fine = np.linspace(-8, 8, 1_000_001)
    density = normal(fine, mean, log_variance) * (fine[1] - fine[0])
    likelihood = np.exp(_discretized_log_likelihood(values(), jnp.full(256, mean), jnp.full(256, log_variance)))
    for index in (0, 1, 100, 200, 254, 255):
        low = -np.inf if index == 0 else (index - 0.5) / 127.5 - 1
        high = np.inf if index == 255 else (index + 0.5) / 127.5 - 1
        assert likelihood[index] == pytest.approx(density[(fine > low) & (fine <= high)].sum(), rel=3e-3, abs=1e-8)


def test_likelihood_is_symmetric():
    mean = jnp.linspace(-1, 1, 256)
    likelihood, mirrored = (
        _discretized_log_likelihood(s * values()[::-1], s * mean, jnp.full(256, -4.0)) for s in (1, -1)
    )
    np.testing.assert_allclose(likelihood, mirrored, rtol=1e-4)


def test_likelihood_of_outliers_is_finite():
    def total(mean, log_variance):
        return _discretized_log_likelihood(values(), mean, log_variance).sum()

    for log_variance in (-40.0, -20.0, 0.0, 20.0):
        arguments = jnp.full(256, 0.3), jnp.full(256, log_variance)
        likelihood = _discretized_log_likelihood(values(), *arguments)
        assert (likelihood >= _LOG_LIKELIHOOD_MIN).all()
        for gradient in jax.grad(total, argnums=(0, 1))(*arguments):
            assert np.isfinite(gradient).all()


@each_schedule
def test_log_variance_bounds(schedule):
    """q(z_t | z_s) has 1 - alpha_t²/alpha_s² of variance (beta); q(z_s | z_t, x) has sigma_s²/sigma_t² of that."""
    t = np.float64(TIMES)
    logsnr_t, logsnr_s = (np.float64(schedule.logsnr(jnp.float32(at))) for at in (t, t - 1 / _NUM_TIMESTEPS))
    # in float64: the differences are small
    square = {name: 1 / (1 + np.exp(-logsnr)) for name, logsnr in (("t", logsnr_t), ("s", logsnr_s))}
    beta = 1 - square["t"] / square["s"]
    posterior = beta * (1 / (1 + np.exp(logsnr_s))) / (1 / (1 + np.exp(logsnr_t)))
    lower, upper = log_variance_bounds(jnp.float32(logsnr_t), jnp.float32(logsnr_s))
    v = jnp.ones((len(t), 2, 2, 3))
    np.testing.assert_allclose(np.exp(learned_log_variance(v, lower, upper)[:, 0, 0, 0]), beta, rtol=2e-3)
    np.testing.assert_allclose(np.exp(learned_log_variance(-v, lower, upper)[:, 1, 1, 2]), posterior, rtol=2e-3)
    middle = np.sqrt(beta * posterior)
    np.testing.assert_allclose(np.exp(learned_log_variance(0 * v, lower, upper)[:, 0, 1, 0]), middle, rtol=2e-3)


def test_posterior_mean_matches_simulation():
    """Regresses z_s on z_t over simulated pairs (z_s, z_t) for one x."""
    schedule, t, s, x = schedules.cosine(), jnp.float32(0.6), jnp.float32(0.4), 0.5
    rng = np.random.default_rng(0)
    alpha_t, alpha_s, sigma_t, sigma_s = (float(f(at)) for f in (schedule.alpha, schedule.sigma) for at in (t, s))
    z_s = alpha_s * x + sigma_s * rng.standard_normal(400_000)
    ratio = alpha_t / alpha_s
    z_t = ratio * z_s + math.sqrt(sigma_t**2 - (ratio * sigma_s) ** 2) * rng.standard_normal(400_000)
    slope, offset = np.polyfit(z_t, z_s, 1)
    for z in (-1.0, 0.2, 1.0):
        mean = posterior_mean(jnp.float32(x), jnp.float32(z), schedule.logsnr(t), schedule.logsnr(s))
        assert float(mean) == pytest.approx(slope * z + offset, abs=5e-3)


@pytest.fixture(scope="module")
def gaussian():
    """Returns x ~ N(0, 1) and eps of many dimensions."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, len(TIMES), 200, 200, 1)).astype(np.float32)


def noisy(schedule, x, eps, t):
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return add_noise(x, eps, alpha, sigma), alpha[:, None, None, None]


@each_schedule
def test_exact_denoiser_of_a_gaussian_reaches_the_information(schedule, gaussian):
    """For x ~ N(0, 1): I(x; z_s) - I(x; z_t) = ½ log(sigma_t² / sigma_s²), reached with the upper variance, v = 1."""
    x, eps = gaussian
    z, alpha = noisy(schedule, x, eps, TIMES)
    loss = vlb_loss(x, alpha * z, jnp.ones_like(x), z, schedule, TIMES)
    fall = jnp.log(schedule.sigma(TIMES)) - jnp.log(schedule.sigma(TIMES - 1 / _NUM_TIMESTEPS))
    np.testing.assert_allclose(loss, _NUM_TIMESTEPS * fall / math.log(2), rtol=0.03)
    # any other variance costs more, visibly where steps change the noise a lot
    for v in (-1.0, 0.5, 1.5):
        assert (vlb_loss(x, alpha * z, jnp.full_like(x, v), z, schedule, TIMES)[:2] > loss[:2]).all()


def test_terms_sum_to_the_total_information(gaussian):
    """Sums all steps of T = 20 but the last: I(x; z_{1/T}) for x ~ N(0, 1); the prior term is 0."""
    schedule, steps = schedules.cosine(), 20
    x, eps = gaussian[:, :1]
    total = 0.0
    for i in range(2, steps + 1):
        t = jnp.float32([i / steps])
        z, alpha = noisy(schedule, x, eps, t)
        total += float(vlb_loss(x, alpha * z, jnp.ones_like(x), z, schedule, t, steps)[0]) / steps
    assert total == pytest.approx(-math.log2(float(schedule.sigma(jnp.float32(1 / steps)))), rel=0.02)


@each_schedule
def test_known_image_with_lower_variance_costs_nothing(schedule):
    x = jnp.asarray(np.random.default_rng(0).choice(np.asarray(values()), (len(TIMES), 8, 8, 3)))
    z, _ = noisy(schedule, x, jnp.asarray(np.random.default_rng(1).standard_normal(x.shape), jnp.float32), TIMES)
    np.testing.assert_allclose(vlb_loss(x, x, -jnp.ones_like(x), z, schedule, TIMES), 0, atol=1e-3 * _NUM_TIMESTEPS)
    assert (vlb_loss(x, x, jnp.zeros_like(x), z, schedule, TIMES)[:2] > 0.5).all()


@each_schedule
def test_loss_and_gradient_are_finite(schedule):
    """For any network output: predictions far off, and the full range of v."""
    t, v, x_hat = jnp.meshgrid(
        jnp.float32([0.0, 1e-9, 1e-4, 0.0009, 0.001, 0.00101, 0.5, 0.9999, 1.0]),
        jnp.float32([-1, 0, 1]),
        jnp.float32([-1, 0.3, 1]),
    )
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.choice(np.asarray(values()), (t.size, 4, 4, 1)), jnp.float32)
    z, _ = noisy(schedule, x, jnp.asarray(rng.standard_normal(x.shape), jnp.float32), t.ravel())

    def total(v):
        loss = vlb_loss(x, x_hat.reshape(-1, 1, 1, 1) + 0 * x, v, z, schedule, t.ravel())
        return loss.sum(), loss

    gradient, loss = jax.grad(total, has_aux=True)(v.reshape(-1, 1, 1, 1) + 0 * x)
    assert np.isfinite(loss).all()
    assert np.isfinite(gradient).all()


def test_no_gradient_to_the_mean(gaussian):
    schedule = schedules.cosine()
    x, eps = gaussian[:, :, :4, :4]
    z, _ = noisy(schedule, x, eps, TIMES)

    def total(x_hat, v):
        return vlb_loss(x, x_hat, v, z, schedule, TIMES).sum()

    mean_grad, v_grad = jax.grad(total, argnums=(0, 1))(0.5 * x, jnp.zeros_like(x))
    np.testing.assert_array_equal(mean_grad, 0)
    assert (np.abs(v_grad) > 0).all()
