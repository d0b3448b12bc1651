import functools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import schedules
from imagen_jax.diffusion.process import log_variance_bounds
from imagen_jax.diffusion.samplers import (
    LAMBDA_MIN,
    Churn,
    SamplerConfig,
    bdia,
    ddim,
    ddpm,
    dpm_solver,
    gaussian_noise,
    get_sampler,
    heun,
    sample_keys,
    walk,
)
from imagen_jax.diffusion.schedules import Schedule
from imagen_jax.diffusion.timesteps import karras
from imagen_jax.errors import ConfigError

COSINE, LINEAR, SIGMOID = schedules.cosine(), schedules.linear(), schedules.sigmoid()
# Four Gaussians, one per dimension.
MEAN = np.float32([-0.6, 0.0, 0.3, 2.0])
STD = np.float32([0.4, 0.5, 1.0, 1.5])
# A bimodal, asymmetric mixture in one dimension.
WEIGHTS, CENTERS, WIDTH = np.float32([0.3, 0.7]), np.float32([-1.0, 0.5]), 0.3

# Halves compile time; results are the same.
FAST_COMPILE = {"xla_backend_optimization_level": 0}

DDPM_LARGE, DDPM_LEARNED = partial(ddpm, variance_type="large"), partial(ddpm, variance_type="learned")
DDIM_HALF, DDIM_1 = partial(ddim, eta=0.5), partial(ddim, eta=1.0)
HEUN_CHURN = partial(heun, churn=Churn(40.0, s_tmin=0.01, s_tmax=50.0))
SAMPLERS = {
    "ddpm": ddpm,
    "ddim-0": ddim,
    "ddim-0.5": DDIM_HALF,
    "ddim-1": DDIM_1,
    "bdia": bdia,
    "ddpm-large": DDPM_LARGE,
    "dpm_solver": dpm_solver,
    "heun": heun,
    "heun-churn": HEUN_CHURN,
}


def each_of(*names):
    return pytest.mark.parametrize("sampler", [SAMPLERS[name] for name in names], ids=names)


each_sampler = each_of(*SAMPLERS)


def gaussian(schedule: Schedule):
    """Returns the denoiser E[x | z_t] for x ~ N(MEAN, STD²), z [B, 4]."""

    def denoise(z, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return MEAN + gain * (z - alpha * MEAN)

    return denoise


def known(schedule: Schedule):
    """Returns the denoiser for the known image MEAN."""
    return lambda z, t: jnp.broadcast_to(MEAN, z.shape)


def mixture(schedule: Schedule):
    """Returns the denoiser E[x | z_t] for the mixture, z [B, 1]: component means weighted by responsibilities."""

    def denoise(z, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        variance = (alpha * WIDTH) ** 2 + sigma**2
        off = z - alpha * CENTERS
        responsibility = jax.nn.softmax(jnp.log(WEIGHTS) - off**2 / (2 * variance), axis=-1)
        return jnp.sum(responsibility * (CENTERS + alpha * WIDTH**2 / variance * off), axis=-1, keepdims=True)

    return denoise


@partial(
    jax.jit, static_argnames=("sampler", "denoiser", "schedule", "steps", "spacing"), compiler_options=FAST_COMPILE
)
def sample(sampler, denoiser, schedule, steps, z, keys, spacing=None):
    made = sampler(schedule)
    return made(denoiser(schedule), z, made.times(steps, spacing or usual_spacing(sampler)), keys)


def usual_spacing(sampler):
    return "karras" if getattr(sampler, "func", sampler) is heun else "uniform"


@functools.cache
def all_noise_and_keys():
    keys = jax.jit(lambda: sample_keys(0, jnp.arange(8192)))()
    return np.asarray(jax.jit(lambda keys: gaussian_noise(keys, 0, (4,)), compiler_options=FAST_COMPILE)(keys)), keys


def noise_and_keys(count, dimensions):
    """Returns z_1 [count, dimensions], made with step 0 of the keys, and the keys; samplers begin with step 1."""
    z, keys = all_noise_and_keys()
    return z[:count, :dimensions], keys[:count]


def assert_gaussian(x, mean, std, bias):
    """Asserts mean and std of samples [N, 4], up to 4 standard errors and a bias relative to the std."""
    x, count = np.asarray(x, np.float64), len(x)
    np.testing.assert_array_less(np.abs(x.mean(0) - mean) / std, 4 / math.sqrt(count) + bias)
    np.testing.assert_array_less(np.abs(x.std(0) / std - 1), 4 / math.sqrt(2 * count) + bias)


@each_sampler
def test_gaussian_moments(sampler):
    # DDPM's std is 1.9 % too small at 250 steps, because its steps neglect the variance of x given z_t
    assert_gaussian(sample(sampler, gaussian, COSINE, 250, *noise_and_keys(4096, 4)), MEAN, STD, bias=0.02)


def test_gaussian_moments_linear_schedule():
    assert_gaussian(sample(ddim, gaussian, LINEAR, 250, *noise_and_keys(8192, 4)), MEAN, STD, bias=0.02)


@each_of("ddpm", "ddim-0", "ddim-0.5", "ddim-1")
def test_marginal_of_a_known_image_midway(sampler):
    """Exact for any number of steps: both papers preserve the marginals q(z_s | x)."""
    midway = Schedule("upper half of cosine", lambda t: COSINE.logsnr(0.6 + 0.4 * t), COSINE.inverse_logsnr)
    x = sample(sampler, known, midway, 3, *noise_and_keys(8192, 4))
    assert_gaussian(x, MEAN * COSINE.alpha(0.6), np.full(4, COSINE.sigma(0.6)), bias=1e-3)


@each_sampler
def test_mixture_moments(sampler):
    count = 8192
    x = np.asarray(sample(sampler, mixture, COSINE, 250, *noise_and_keys(count, 1)), np.float64)
    rng = np.random.default_rng(0)
    true = rng.choice(CENTERS, 2**20, p=WEIGHTS / WEIGHTS.sum()) + WIDTH * rng.standard_normal(2**20)
    mean = true.mean()
    assert x.mean() == pytest.approx(mean, abs=4 * true.std() / math.sqrt(count) + 0.01)
    for power in (2, 4):
        powers = (true - mean) ** power
        error = 4 * powers.std() / math.sqrt(count)
        assert np.mean((x - mean) ** power) == pytest.approx(powers.mean(), abs=error + 0.02 * powers.mean())


def test_ddim_eta_1_is_ddpm():
    """Step by step, not only in distribution: Eq. 12 and 16 at eta = 1 are the posterior's mean and variance."""
    inputs = noise_and_keys(16, 1)
    ancestral = sample(ddpm, mixture, COSINE, 12, *inputs)
    np.testing.assert_allclose(sample(DDIM_1, mixture, COSINE, 12, *inputs), ancestral, atol=1e-3)
    assert np.abs(sample(ddim, mixture, COSINE, 12, *inputs) - ancestral).mean() > 0.1


def cdf(x, alpha, sigma):
    """Returns P(z_t ≤ x) under the mixture, in float64."""
    std = math.sqrt((alpha * WIDTH) ** 2 + sigma**2)
    below = [0.5 * (1 + math.erf((value - alpha * c) / std / math.sqrt(2))) for value in x for c in CENTERS]
    return np.reshape(below, (-1, 2)) @ (np.float64(WEIGHTS) / WEIGHTS.sum(dtype=np.float64))


def flow(z, schedule, t):
    """Returns the endpoint at time 0 of the mixture's probability flow from z_t [N]; it preserves quantiles."""
    levels = [(float(schedule.alpha(time)), float(schedule.sigma(time))) for time in (t, 0.0)]
    xs = np.linspace(-4, 4, 20001)
    return np.interp(cdf(z, *levels[0]), cdf(xs, *levels[1]), xs)


def order_of(errors, steps):
    """Returns the exponent p of error ~ steps^-p."""
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def test_ddim_order_on_a_gaussian():
    """The limit is known: the flow preserves the number of standard deviations from the mean."""
    z, keys = noise_and_keys(64, 4)
    clean, noisy = (COSINE.alpha(0.0), COSINE.sigma(0.0)), (COSINE.alpha(1.0), COSINE.sigma(1.0))

    def std(alpha, sigma):
        return np.sqrt((alpha * STD) ** 2 + sigma**2)

    exact = clean[0] * MEAN + std(*clean) * (z - noisy[0] * MEAN) / std(*noisy)
    steps = [16, 32, 64]
    errors = [np.abs(sample(ddim, gaussian, COSINE, n, z, keys) - exact).mean() for n in steps]
    assert order_of(errors, steps) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("schedule", [COSINE, LINEAR], ids=lambda schedule: schedule.name)
@pytest.mark.parametrize(
    "sampler, spacing, order",
    [(ddim, "uniform", 1), (ddim, "karras", 1), (dpm_solver, "karras", 2), (heun, "karras", 2)],
    ids=["ddim-uniform", "ddim-karras", "dpm_solver-karras", "heun-karras"],
)
def test_order_on_a_mixture(sampler, spacing, order, schedule):
    assert_order(sampler, spacing, schedule, order)


@each_of("dpm_solver", "heun")
def test_second_order_with_quadratic_times_and_linear_schedule(sampler):
    """Not with uniform times: sigma grows like the root of time near the clean end, so the last step is too long."""
    assert_order(sampler, "quadratic", LINEAR, 2)


@pytest.mark.parametrize("spacing, order", [("uniform", 1), ("karras", 2)])
@each_of("dpm_solver", "heun")
def test_second_order_needs_short_last_steps(sampler, spacing, order):
    """Sigma of the sigmoid schedule, too, grows like the root of time."""
    assert_order(sampler, spacing, SIGMOID, order)


def assert_order(sampler, spacing, schedule, order):
    z, keys = noise_and_keys(256, 1)
    steps = [64, 128, 256]
    exact = flow(np.asarray(z)[:, 0], schedule, sampler(schedule).times(64, spacing)[0])
    errors = [
        np.abs(np.asarray(sample(sampler, mixture, schedule, n, z, keys, spacing))[:, 0] - exact).mean() for n in steps
    ]
    assert errors[-1] < 0.01
    assert order_of(errors, steps) == pytest.approx(order, abs=0.15)


@each_of("dpm_solver", "heun")
@pytest.mark.parametrize("spacing", ["uniform", "karras"])
def test_second_order_beats_ddim_at_equal_evaluations(sampler, spacing):
    z, keys = noise_and_keys(256, 1)
    errors = []
    exact = flow(np.asarray(z)[:, 0], COSINE, 1.0)
    for solver, steps in [(ddim, 63), (sampler, 32 if sampler is heun else 63)]:
        x = np.asarray(sample(solver, mixture, COSINE, steps, z, keys, spacing))[:, 0]
        errors.append(np.median(np.abs(x - exact)))
    assert errors[1] < errors[0] / 2


@each_of("dpm_solver", "heun")
def test_second_order_times_start_below_max_noise(sampler):
    times = np.asarray(sampler(COSINE).times(1000))
    assert COSINE.logsnr(times[0]) == pytest.approx(2 * LAMBDA_MIN, abs=1e-2)
    assert times[-1] == 0 and (np.diff(times) < 0).all()
    # a schedule that starts later is unchanged
    np.testing.assert_array_equal(sampler(COSINE).times(20, "karras"), karras(COSINE, 20))


# Small enough that the variance of a step is between its bounds; for the last one it is the upper bound.
NARROW = np.float32([0.1, 0.5, 0.8, 1.0])


def narrow(schedule: Schedule, steps: int):
    """Returns a denoiser like `gaussian` with stds NARROW that also returns v of the exact variance of a step."""

    def denoise(z, t):
        s = jnp.maximum(t - 1 / steps, 0.0)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        gain = alpha * NARROW**2 / (alpha**2 * NARROW**2 + sigma**2)
        lower, upper = log_variance_bounds(schedule.logsnr(t), schedule.logsnr(s))
        renewed = -jnp.expm1(schedule.logsnr(t) - schedule.logsnr(s))
        # variance of z_s given x, and of the mean of z_s with x given z_t
        variance = jnp.exp(lower) + (renewed * schedule.alpha(s)) ** 2 * gain / alpha * sigma**2
        v = 2 * (jnp.log(variance) - lower) / (upper - lower) - 1
        return MEAN + gain * (z - alpha * MEAN), v

    return denoise


def test_exact_learned_variance_in_few_steps():
    """Reverse steps of Gaussian data are Gaussian for any step size; the omission of the last step is known."""
    steps, last = 6, 1 / 6
    denoise = narrow(COSINE, steps)
    v = denoise(jnp.zeros((1, 4)), jnp.asarray(0.5))[1]
    assert v.min() >= -1.001 and v.max() <= 1.001 and np.ptp(v) > 1
    x = sample(DDPM_LEARNED, lambda schedule: denoise, COSINE, steps, *noise_and_keys(8192, 4))
    alpha, sigma = COSINE.alpha(last), COSINE.sigma(last)
    expected = alpha * NARROW**2 / np.sqrt(alpha**2 * NARROW**2 + sigma**2)
    assert_gaussian(x, MEAN, expected, bias=1e-3)
    # far off with the posterior variance
    small = sample(ddpm, lambda schedule: lambda z, t: denoise(z, t)[0], COSINE, steps, *noise_and_keys(8192, 4))
    assert np.asarray(small).std(0)[-1] < 0.9 * expected[-1]


@pytest.mark.parametrize("v, variance_type", [(-1.0, "small"), (1.0, "large")])
def test_learned_variance_bounds_are_the_fixed_ones(v, variance_type):
    z, keys = noise_and_keys(64, 1)
    learned = sample(DDPM_LEARNED, lambda schedule: lambda z, t: (mixture(schedule)(z, t), v), COSINE, 8, z, keys)
    fixed = sample({"small": ddpm, "large": DDPM_LARGE}[variance_type], mixture, COSINE, 8, z, keys)
    np.testing.assert_allclose(learned, fixed, atol=1e-5)


def test_large_variance_is_exact_for_gaussian_pixels():
    """z_t is standard Gaussian at every t; the last step omits the variance of x given z_t."""
    steps = 6
    x = sample(DDPM_LARGE, lambda schedule: lambda z, t: schedule.alpha(t) * z, COSINE, steps, *noise_and_keys(8192, 4))
    assert_gaussian(x, np.zeros(4), np.full(4, COSINE.alpha(1 / steps)), bias=1e-3)


def test_churn_range():
    z, keys = noise_and_keys(64, 1)
    deterministic = sample(heun, mixture, COSINE, 12, z, keys)
    out_of_range = sample(partial(heun, churn=Churn(40.0, s_tmin=100.0, s_tmax=200.0)), mixture, COSINE, 12, z, keys)
    np.testing.assert_allclose(out_of_range, deterministic, atol=1e-5)
    assert np.abs(sample(HEUN_CHURN, mixture, COSINE, 12, z, keys) - deterministic).max() > 0.1


def test_churn_is_limited_per_step():
    """The denoiser gets the raised noise level."""
    levels = []
    z, keys = noise_and_keys(1, 1)

    def denoise(z, t):
        jax.debug.callback(lambda t: levels.append(np.exp(-COSINE.logsnr(t) / 2)), t, ordered=True)
        return z

    sampler = heun(COSINE, Churn(1000.0))
    sampler(denoise, z, sampler.times(4, "karras"), keys).block_until_ready()
    jax.effects_barrier()
    levels_without_churn = np.exp(-np.asarray(COSINE.logsnr(karras(COSINE, 4)[:-1])) / 2)
    np.testing.assert_allclose(levels[::2], math.sqrt(2) * levels_without_churn, rtol=1e-2)
    np.testing.assert_allclose(levels[1::2], levels_without_churn[1:], rtol=1e-2)


@each_sampler
@pytest.mark.parametrize("steps", [1, 5])
def test_known_image_is_recovered(sampler, steps):
    z, keys = noise_and_keys(3, 4)
    x = sample(sampler, known, COSINE, steps, z, keys)
    np.testing.assert_allclose(x, np.tile(MEAN, (3, 1)), atol=1e-3)


@each_of("ddim-0", "bdia", "dpm_solver", "heun")
def test_deterministic_samplers_ignore_keys(sampler):
    z, keys = noise_and_keys(16, 1)
    same = [sample(sampler, mixture, COSINE, 12, z, k) for k in (keys, keys, sample_keys(77, jnp.arange(16)))]
    np.testing.assert_array_equal(same[0], same[1])
    np.testing.assert_array_equal(same[0], same[2])


@each_of("ddpm", "ddim-0.5", "heun-churn")
def test_stochastic_samplers_depend_on_keys(sampler):
    z, keys = noise_and_keys(16, 1)
    other = sample_keys(77, jnp.arange(16))
    assert (
        np.abs(sample(sampler, mixture, COSINE, 12, z, keys) - sample(sampler, mixture, COSINE, 12, z, other)).max()
        > 0.1
    )


@pytest.mark.parametrize(
    "sampler, spacing, expected",
    [
        (ddpm, "uniform", [1.0, 0.75, 0.5, 0.25]),
        (ddim, "uniform", [1.0, 0.75, 0.5, 0.25]),
        (ddim, "quadratic", [1.0, 0.5625, 0.25, 0.0625]),
        (dpm_solver, "uniform", np.array([1.0, 0.75, 0.5, 0.25]) * 0.996147),
        (heun, "uniform", np.array([1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]) * 0.996147),
    ],
    ids=["ddpm", "ddim", "ddim-quadratic", "dpm_solver", "heun"],
)
def test_denoiser_times(sampler, spacing, expected):
    times = []
    z, keys = noise_and_keys(1, 1)

    def denoise(z, t):
        jax.debug.callback(lambda t: times.append(float(t)), t, ordered=True)
        return z

    made = sampler(COSINE)
    made(denoise, z, made.times(4, spacing), keys).block_until_ready()
    jax.effects_barrier()
    np.testing.assert_allclose(times, expected, rtol=1e-6)


@partial(jax.jit, compiler_options=FAST_COMPILE)
def image_noise(keys, step):
    return gaussian_noise(keys, step, (4, 4, 3))


@pytest.mark.trap("uniform noise")
def test_noise_is_gaussian():
    """Moments of 2^16 draws within 5 standard errors."""
    noise = np.asarray(gaussian_noise(sample_keys(3, jnp.arange(64)), 5, (32, 32, 1)), np.float64)
    for power, moment, spread in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert np.mean(noise**power) == pytest.approx(moment, abs=5 * math.sqrt(spread / noise.size))
    assert np.abs(noise).max() > 3.5


def test_noise_depends_on_seed_and_index_only():
    def noise(indices, seed=7, step=2):
        return np.asarray(image_noise(sample_keys(seed, jnp.asarray(indices)), step))

    batch = noise(range(16))
    np.testing.assert_array_equal(noise([5])[0], batch[5])  # alone
    np.testing.assert_array_equal(noise(range(20, 4, -1))[15], batch[5])  # at another index of another batch
    distinct = np.concatenate([batch, noise(range(16), seed=8), noise(range(16), step=3)]).reshape(48, -1)
    assert np.abs(np.corrcoef(distinct) - np.eye(48)).max() < 0.75  # of 48 numbers each; equal noise has 1


def test_noise_is_equal_on_a_mesh():
    keys = sample_keys(7, jnp.arange(16))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    on_mesh = image_noise(jax.device_put(keys, split), 2)
    assert len(on_mesh.sharding.device_set) == 8
    np.testing.assert_array_equal(on_mesh, image_noise(keys, 2))


@each_of("ddpm", "ddim-0.5", "heun-churn")
def test_samples_do_not_depend_on_the_batch(sampler):
    z, keys = noise_and_keys(16, 1)
    batch = sample(sampler, mixture, COSINE, 12, z, keys)
    np.testing.assert_allclose(sample(sampler, mixture, COSINE, 12, z[5:6], keys[5:6]), batch[5:6], atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_too_few_steps_raise(sampler):
    with pytest.raises(ConfigError, match="steps 0"):
        sampler(COSINE).times(0)


SETTINGS = {
    "eta": 0.0,
    "variance_type": "small",
    "s_churn": 0.0,
    "s_tmin": 0.0,
    "s_tmax": math.inf,
    "s_noise": 1.0,
}


@pytest.mark.parametrize(
    "name, settings, expected",
    [
        ("ddpm", {"eta": 1.0, "s_churn": 9.0}, ddpm),
        ("ddpm", {"variance_type": "large"}, DDPM_LARGE),
        ("ddim", {"eta": 1.0, "variance_type": "large"}, DDIM_1),
        ("dpm_solver", {}, dpm_solver),
        ("heun", {"s_churn": 40.0, "s_tmin": 0.01, "s_tmax": 50.0}, HEUN_CHURN),
    ],
    # names only: the addresses of functions differ between processes
    ids=lambda value: None if callable(value) else str(value),
)
def test_get_sampler(name, settings, expected):
    inputs = noise_and_keys(16, 1)
    config = SamplerConfig(**{**SETTINGS, **settings})
    named, expected = (
        sample(sampler, mixture, COSINE, 12, *inputs, spacing="uniform")
        for sampler in (partial(get_sampler, name, config=config), expected)
    )
    np.testing.assert_array_equal(named, expected)


@pytest.mark.parametrize(
    "name, settings, match",
    [
        ("euler", {}, "sampler 'euler'"),
        ("ddpm", {"variance_type": "medium"}, "variance_type 'medium'"),
        ("ddim", {"eta": -0.1}, "eta -0.1"),
        ("ddim", {"eta": 1.5}, "eta 1.5"),
        ("heun", {"s_churn": -1.0}, "s_churn -1.0"),
        ("heun", {"s_noise": -1.0}, "s_noise -1.0"),
        ("heun", {"s_tmin": 2.0, "s_tmax": 1.0}, "s_tmin 2.0.*s_tmax 1.0"),
    ],
    ids=str,
)
def test_invalid_settings_raise(name, settings, match):
    with pytest.raises(ConfigError, match=match):
        get_sampler(name, COSINE, SamplerConfig(**{**SETTINGS, **settings}))


@partial(jax.jit, static_argnames="sampler")
def in_parts(sampler, state, inputs, keys, first, last):
    return walk(sampler, mixture(COSINE), state, inputs, keys, span=(first, last))


@each_sampler
def test_chunked_walk_is_bit_exact(sampler):
    z, keys = noise_and_keys(16, 1)
    made = sampler(COSINE)
    inputs = made.inputs(made.times(21, usual_spacing(sampler)))
    full = in_parts(made, made.start(z), inputs, keys, 0, 21)
    for size in (1, 4, 8):
        state = made.start(z)
        for first in range(0, 21, size):
            state = in_parts(made, state, inputs, keys, first, min(first + size, 21))
        np.testing.assert_array_equal(state.z, full.z)
        np.testing.assert_array_equal(state.x_hat, full.x_hat)
    assert np.abs(full.z - z).max() > 0.1


@each_sampler
def test_trajectory_ends_in_the_sample(sampler):
    z, keys = noise_and_keys(16, 1)
    made = sampler(COSINE)
    times = made.times(9, usual_spacing(sampler))
    states = jax.jit(lambda z: made.trajectory(mixture(COSINE), z, times, keys))(z)
    assert states.z.shape == states.x_hat.shape == (9, 16, 1)
    np.testing.assert_allclose(states.z[-1], made(mixture(COSINE), z, times, keys), atol=1e-4)
    assert np.abs(np.diff(states.z, axis=0)).max(axis=(1, 2)).min() > 0


@each_sampler
def test_start_from_a_noised_sample(sampler):
    """The marginal of the data is kept; from time 1 it is plain sampling to the bit."""
    z, keys = noise_and_keys(4096, 4)
    made, spacing = sampler(COSINE), usual_spacing(sampler)
    rng = np.random.default_rng(1)
    x = np.float32(MEAN + STD * rng.standard_normal(z.shape))
    times = made.times(100, spacing, start=0.6)
    assert times[0] == pytest.approx(0.6, abs=1e-5)
    noised = COSINE.alpha(times[0]) * x + COSINE.sigma(times[0]) * z
    assert_gaussian(jax.jit(partial(made, gaussian(COSINE), times=times, keys=keys))(noised), MEAN, STD, bias=0.03)
    np.testing.assert_array_equal(made.times(12, spacing, start=1.0), made.times(12, spacing))


@each_of("ddim-0", "bdia", "dpm_solver", "heun")
def test_inversion_returns_to_the_image(sampler):
    x = np.asarray(sample(sampler, mixture, COSINE, 200, *noise_and_keys(256, 1)))
    made, keys = sampler(COSINE), noise_and_keys(256, 1)[1]
    times = made.times(200)
    z = made(mixture(COSINE), x, times[::-1], keys)
    assert np.std(z) == pytest.approx(1, abs=0.2)
    again = np.asarray(made(mixture(COSINE), z, times, keys))
    assert np.median(np.abs(again - x)) < 0.02


def test_inversion_iterations():
    """More evaluations of a step up bring images closer; steps down stay as they are."""
    noise, keys = noise_and_keys(256, 1)
    errors = []
    for iterations in (1, 2, 5):
        made = ddim(COSINE, inversion_iterations=iterations)
        times = made.times(50)
        walk_along = jax.jit(partial(made, mixture(COSINE), keys=keys))
        x = walk_along(noise, times=times)
        np.testing.assert_allclose(x, ddim(COSINE)(mixture(COSINE), noise, times, keys), atol=1e-5)
        errors.append(np.mean(np.abs(walk_along(walk_along(x, times=times[::-1]), times=times) - x)))
    assert errors[2] < 0.7 * errors[1] < errors[0] / 2
    with pytest.raises(ConfigError, match="inversion_iterations 0"):
        ddim(COSINE, inversion_iterations=0)


@each_of("ddpm", "ddim-0", "ddim-0.5", "ddim-1", "dpm_solver", "heun", "heun-churn")
def test_stop_at_a_time(sampler):
    """A known image is at its marginal wherever the walk stops."""
    z, keys = noise_and_keys(8192, 4)
    times = jnp.linspace(0.9, 0.3, 5)
    start = COSINE.alpha(0.9) * MEAN + COSINE.sigma(0.9) * z
    made = sampler(COSINE)
    stopped = jax.jit(partial(made, known(COSINE), times=times, keys=keys))(start)
    assert_gaussian(stopped, MEAN * COSINE.alpha(0.3), np.full(4, COSINE.sigma(0.3)), bias=0.02)


@each_sampler
def test_on_step_hook(sampler):
    """It sees every step, and what it returns is where the walk goes on."""
    z, keys = noise_and_keys(3, 4)
    made, seen = sampler(COSINE), []

    def hook(z, x_hat, t, s):
        jax.debug.callback(lambda t, s: seen.append((float(t), float(s))), t, s, ordered=True)
        return jnp.where(s == 0, x_hat + 1.0, z)

    times = made.times(4)
    x = made(known(COSINE), z, times, keys, on_step=hook)
    jax.effects_barrier()
    np.testing.assert_allclose(x, np.tile(MEAN + 1, (3, 1)), atol=1e-5)
    np.testing.assert_allclose(seen, np.stack([times[:-1], times[1:]], axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    "times", [[1.0], [1.0, 0.5, 0.7], [0.5, 0.5], [1.2, 0.0], [[1.0, 0.0]], [1.0, math.nan]], ids=str
)
def test_times_that_are_not_monotone(times):
    with pytest.raises(ConfigError, match="times"):
        ddim(COSINE)(known(COSINE), *noise_and_keys(1, 4)[:1], np.array(times), noise_and_keys(1, 4)[1])


@each_of("ddpm", "ddim-0.5", "heun-churn")
def test_stochastic_samplers_do_not_ascend(sampler):
    z, keys = noise_and_keys(1, 4)
    with pytest.raises(ConfigError, match="ascend"):
        sampler(COSINE)(known(COSINE), z, np.array([0.1, 0.5]), keys)


@pytest.mark.parametrize("start", [0.0, -1.0, 1.5])
def test_start_out_of_range(start):
    with pytest.raises(ConfigError, match="start"):
        ddim(COSINE).times(4, start=start)


def test_unknown_spacing():
    with pytest.raises(ConfigError, match="timestep_spacing 'cubic'"):
        ddim(COSINE).times(4, "cubic")
