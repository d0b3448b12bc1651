import functools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import samplers, schedules
from imagen_jax.diffusion.process import log_variance_bounds
from imagen_jax.diffusion.samplers import LAMBDA_MIN, bounded, ddim, ddpm, dpm_solver, heun, noise, sample_keys
from imagen_jax.diffusion.schedules import Schedule
from imagen_jax.diffusion.timesteps import karras, quadratic, uniform
from imagen_jax.errors import ConfigError

COSINE, LINEAR = schedules.cosine(), schedules.linear()
# Four Gaussians at once, one a dimension.
MEAN = np.float32([-0.6, 0.0, 0.3, 2.0])
DEVIATION = np.float32([0.4, 0.5, 1.0, 1.5])
# A mixture of two in one dimension, two-peaked and lopsided.
WEIGHTS, CENTRES, WIDTH = np.float32([0.3, 0.7]), np.float32([-1.0, 0.5]), 0.3

# For what is small: half the time to compile, and the same mathematics.
QUICKLY = {"xla_backend_optimization_level": 0}

DDPM_LARGE, DDPM_LEARNED = partial(ddpm, variance="large"), partial(ddpm, variance="learned")
DDIM_HALF, DDIM_1 = partial(ddim, eta=0.5), partial(ddim, eta=1.0)
HEUN_CHURN = partial(heun, churn=40.0, churn_range=(0.01, 50.0))
SAMPLERS = {
    "ddpm": ddpm,
    "ddim-0": ddim,
    "ddim-0.5": DDIM_HALF,
    "ddim-1": DDIM_1,
    "ddpm-large": DDPM_LARGE,
    "dpm_solver": dpm_solver,
    "heun": heun,
    "heun-churn": HEUN_CHURN,
}


def each_of(*names):
    return pytest.mark.parametrize("sampler", [SAMPLERS[name] for name in names], ids=names)


each_sampler = each_of(*SAMPLERS)


def gaussian(schedule: Schedule):
    """E[x | z_t] of x ~ N(MEAN, DEVIATION²), z [B, 4]."""

    def denoise(z, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
        return MEAN + gain * (z - alpha * MEAN)

    return denoise


def known(schedule: Schedule):
    """A denoiser that knows the image to be MEAN."""
    return lambda z, t: jnp.broadcast_to(MEAN, z.shape)


def mixture(schedule: Schedule):
    """E[x | z_t] of x from the mixture, z [B, 1]: each part's own, weighed by how likely it is given z."""

    def denoise(z, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        variance = (alpha * WIDTH) ** 2 + sigma**2
        off = z - alpha * CENTRES
        responsibility = jax.nn.softmax(jnp.log(WEIGHTS) - off**2 / (2 * variance), axis=-1)
        return jnp.sum(responsibility * (CENTRES + alpha * WIDTH**2 / variance * off), axis=-1, keepdims=True)

    return denoise


@partial(jax.jit, static_argnames=("sampler", "denoiser", "schedule", "steps"), compiler_options=QUICKLY)
def draw(sampler, denoiser, schedule, steps, z, keys):
    return sampler(denoiser(schedule), z, keys, schedule, steps)


@functools.cache
def starts():
    keys = jax.jit(lambda: sample_keys(0, jnp.arange(8192)))()
    return np.asarray(jax.jit(lambda keys: noise(keys, 0, (4,)), compiler_options=QUICKLY)(keys)), keys


def start(count, dimensions):
    """z_1 [count, dimensions], and keys for the walk: their step 0 made z_1, and samplers begin with step 1."""
    z, keys = starts()
    return z[:count, :dimensions], keys[:count]


def assert_gaussian(x, mean, deviation, bias):
    """Mean and deviation of samples [N, 4], to 4 standard errors and a bias relative to the deviation."""
    x, count = np.asarray(x, np.float64), len(x)
    np.testing.assert_array_less(np.abs(x.mean(0) - mean) / deviation, 4 / math.sqrt(count) + bias)
    np.testing.assert_array_less(np.abs(x.std(0) / deviation - 1), 4 / math.sqrt(2 * count) + bias)


@each_sampler
def test_the_exact_denoiser_of_a_gaussian_gives_its_mean_and_deviation(sampler):
    # DDPM's deviation is 1.9 % too small at 250 steps: it takes the most likely x for certain
    assert_gaussian(draw(sampler, gaussian, COSINE, 250, *start(4096, 4)), MEAN, DEVIATION, bias=0.02)


def test_the_exact_denoiser_of_a_gaussian_under_the_linear_schedule():
    assert_gaussian(draw(ddim, gaussian, LINEAR, 250, *start(8192, 4)), MEAN, DEVIATION, bias=0.02)


@each_of("ddpm", "ddim-0", "ddim-0.5", "ddim-1")
def test_stopped_midway_a_known_image_has_just_the_noise_of_that_level(sampler):
    """Exact for any number of steps: the marginals q(z_s | x) are what both papers set out from."""
    midway = Schedule("upper half of cosine", lambda t: COSINE.logsnr(0.6 + 0.4 * t), COSINE.time)
    x = draw(sampler, known, midway, 3, *start(8192, 4))
    assert_gaussian(x, MEAN * COSINE.alpha(0.6), np.full(4, COSINE.sigma(0.6)), bias=1e-3)


@each_sampler
def test_the_exact_denoiser_of_a_mixture_gives_its_moments(sampler):
    count = 8192
    x = np.asarray(draw(sampler, mixture, COSINE, 250, *start(count, 1)), np.float64)
    rng = np.random.default_rng(0)
    true = rng.choice(CENTRES, 2**20, p=WEIGHTS / WEIGHTS.sum()) + WIDTH * rng.standard_normal(2**20)
    mean = true.mean()
    assert x.mean() == pytest.approx(mean, abs=4 * true.std() / math.sqrt(count) + 0.01)
    for power in (2, 4):
        powers = (true - mean) ** power
        error = 4 * powers.std() / math.sqrt(count)
        assert np.mean((x - mean) ** power) == pytest.approx(powers.mean(), abs=error + 0.02 * powers.mean())


def test_ddim_with_all_noise_is_ddpm():
    """Not only in distribution: Eq. 12 and 16 at eta = 1 are the posterior's mean and variance, step by step."""
    given = start(16, 1)
    ancestral = draw(ddpm, mixture, COSINE, 12, *given)
    np.testing.assert_allclose(draw(DDIM_1, mixture, COSINE, 12, *given), ancestral, atol=1e-3)
    assert np.abs(draw(ddim, mixture, COSINE, 12, *given) - ancestral).mean() > 0.1


def cdf(x, alpha, sigma):
    """P(z_t ≤ x) of the mixture, in float64."""
    deviation = math.sqrt((alpha * WIDTH) ** 2 + sigma**2)
    below = [0.5 * (1 + math.erf((value - alpha * c) / deviation / math.sqrt(2))) for value in x for c in CENTRES]
    return np.reshape(below, (-1, 2)) @ (np.float64(WEIGHTS) / WEIGHTS.sum(dtype=np.float64))


def flow(z, schedule, t):
    """Where the flow of the mixture takes z_t [N] to at time 0: in one dimension it keeps quantiles."""
    levels = [(float(schedule.alpha(time)), float(schedule.sigma(time))) for time in (t, 0.0)]
    xs = np.linspace(-4, 4, 20001)
    return np.interp(cdf(z, *levels[0]), cdf(xs, *levels[1]), xs)


# One object each, for `draw` to compile each once.
GRIDDED = {
    (sampler, grid): partial(sampler, grid=grid)
    for sampler in (ddim, dpm_solver, heun)
    for grid in (uniform, quadratic, karras)
}


def order_of(errors, steps):
    """The slope p of error ~ steps^-p."""
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def test_ddim_is_of_first_order_on_a_gaussian():
    """Its limit is known: the flow keeps how many deviations z_t is off its mean."""
    z, keys = start(64, 4)
    end, noisiest = (COSINE.alpha(0.0), COSINE.sigma(0.0)), (COSINE.alpha(1.0), COSINE.sigma(1.0))

    def deviation(alpha, sigma):
        return np.sqrt((alpha * DEVIATION) ** 2 + sigma**2)

    exact = end[0] * MEAN + deviation(*end) * (z - noisiest[0] * MEAN) / deviation(*noisiest)
    steps = [16, 32, 64]
    errors = [np.abs(draw(ddim, gaussian, COSINE, n, z, keys) - exact).mean() for n in steps]
    assert order_of(errors, steps) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("schedule", [COSINE, LINEAR], ids=lambda schedule: schedule.name)
@pytest.mark.parametrize(
    "sampler, grid, order",
    [(ddim, uniform, 1), (ddim, karras, 1), (dpm_solver, karras, 2), (heun, karras, 2)],
    ids=["ddim-uniform", "ddim-karras", "dpm_solver-karras", "heun-karras"],
)
def test_solvers_converge_at_their_order_on_a_mixture(sampler, grid, order, schedule):
    assert_order(sampler, grid, schedule, order)


@each_of("dpm_solver", "heun")
def test_solvers_of_second_order_keep_it_at_quadratic_times_under_the_linear_schedule(sampler):
    """Not at uniform ones: there sigma is as the root of time near the clean end, so that the last step is too long."""
    assert_order(sampler, quadratic, LINEAR, 2)


def assert_order(sampler, grid, schedule, order):
    z, keys = start(256, 1)
    steps = [64, 128, 256]
    exact = flow(np.asarray(z)[:, 0], schedule, bounded(grid)(schedule, 64)[0])
    errors = [
        np.abs(np.asarray(draw(GRIDDED[sampler, grid], mixture, schedule, n, z, keys))[:, 0] - exact).mean()
        for n in steps
    ]
    assert errors[-1] < 0.01
    assert order_of(errors, steps) == pytest.approx(order, abs=0.15)


@each_of("dpm_solver", "heun")
@pytest.mark.parametrize("grid", [uniform, karras], ids=["uniform", "karras"])
def test_solvers_of_second_order_are_nearer_than_ddim_in_as_many_calls(sampler, grid):
    z, keys = start(256, 1)
    errors = []
    exact = flow(np.asarray(z)[:, 0], COSINE, 1.0)
    for solver, steps in [(ddim, 63), (sampler, 32 if sampler is heun else 63)]:
        x = np.asarray(draw(GRIDDED[solver, grid], mixture, COSINE, steps, z, keys))[:, 0]
        errors.append(np.median(np.abs(x - exact)))
    assert errors[1] < errors[0] / 2


@each_of("ddim-0", "dpm_solver", "heun")
def test_solvers_begin_no_noisier_than_they_say(sampler):
    times = np.asarray(bounded(uniform)(COSINE, 1000))
    assert COSINE.logsnr(times[0]) == pytest.approx(2 * LAMBDA_MIN, abs=1e-2)
    assert times[-1] == 0 and (np.diff(times) < 0).all()
    # a grid that begins later stays as it is
    np.testing.assert_array_equal(bounded(karras)(COSINE, 20), karras(COSINE, 20))


# Small enough for the variance of a step to lie between the least and the most; the last is as large as that.
NARROW = np.float32([0.1, 0.5, 0.8, 1.0])


def narrow(schedule: Schedule, steps: int):
    """Like ``gaussian`` with the deviations NARROW, and v of the exact variance of a step."""

    def denoise(z, t):
        s = jnp.maximum(t - 1 / steps, 0.0)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        gain = alpha * NARROW**2 / (alpha**2 * NARROW**2 + sigma**2)
        least, most = log_variance_bounds(schedule.logsnr(t), schedule.logsnr(s))
        renewed = -jnp.expm1(schedule.logsnr(t) - schedule.logsnr(s))
        # z_s varies for a given x, and with x for a given z_t
        variance = jnp.exp(least) + (renewed * schedule.alpha(s)) ** 2 * gain / alpha * sigma**2
        v = 2 * (jnp.log(variance) - least) / (most - least) - 1
        return MEAN + gain * (z - alpha * MEAN), v

    return denoise


def test_a_learned_variance_that_is_right_is_exact_in_few_steps():
    """The way back of Gaussian data is Gaussian, whatever the step; what the last one leaves out is known."""
    steps, last = 6, 1 / 6
    denoise = narrow(COSINE, steps)
    v = denoise(jnp.zeros((1, 4)), jnp.asarray(0.5))[1]
    assert v.min() >= -1.001 and v.max() <= 1.001 and np.ptp(v) > 1
    x = draw(DDPM_LEARNED, lambda schedule: denoise, COSINE, steps, *start(8192, 4))
    alpha, sigma = COSINE.alpha(last), COSINE.sigma(last)
    seen = alpha * NARROW**2 / np.sqrt(alpha**2 * NARROW**2 + sigma**2)
    assert_gaussian(x, MEAN, seen, bias=1e-3)
    # with the variance of single images, far from it
    small = draw(ddpm, lambda schedule: lambda z, t: denoise(z, t)[0], COSINE, steps, *start(8192, 4))
    assert np.asarray(small).std(0)[-1] < 0.9 * seen[-1]


@pytest.mark.parametrize("v, variance", [(-1.0, "small"), (1.0, "large")])
def test_the_ends_of_a_learned_variance_are_the_fixed_ones(v, variance):
    z, keys = start(64, 1)
    learned = draw(DDPM_LEARNED, lambda schedule: lambda z, t: (mixture(schedule)(z, t), v), COSINE, 8, z, keys)
    fixed = draw({"small": ddpm, "large": DDPM_LARGE}[variance], mixture, COSINE, 8, z, keys)
    np.testing.assert_allclose(learned, fixed, atol=1e-5)


def test_the_large_variance_is_exact_for_noise_as_images():
    """Independent standard Gaussian pixels: z_t is so at every t, and the last step leaves out what it cannot see."""
    steps = 6
    x = draw(DDPM_LARGE, lambda schedule: lambda z, t: schedule.alpha(t) * z, COSINE, steps, *start(8192, 4))
    assert_gaussian(x, np.zeros(4), np.full(4, COSINE.alpha(1 / steps)), bias=1e-3)


def test_churn_adds_noise_within_its_range_only():
    z, keys = start(64, 1)
    still = draw(heun, mixture, COSINE, 12, z, keys)
    elsewhere = draw(partial(heun, churn=40.0, churn_range=(100.0, 200.0)), mixture, COSINE, 12, z, keys)
    np.testing.assert_allclose(elsewhere, still, atol=1e-5)
    assert np.abs(draw(HEUN_CHURN, mixture, COSINE, 12, z, keys) - still).max() > 0.1


def test_churn_raises_the_noise_by_the_root_of_two_at_most():
    """And the denoiser is told how much noise there is."""
    levels = []
    z, keys = start(1, 1)

    def denoise(z, t):
        jax.debug.callback(lambda t: levels.append(np.exp(-COSINE.logsnr(t) / 2)), t, ordered=True)
        return z

    partial(heun, churn=1000.0)(denoise, z, keys, COSINE, 4).block_until_ready()
    jax.effects_barrier()
    unchurned = np.exp(-np.asarray(COSINE.logsnr(karras(COSINE, 4)[:-1])) / 2)
    np.testing.assert_allclose(levels[::2], math.sqrt(2) * unchurned, rtol=1e-2)
    np.testing.assert_allclose(levels[1::2], unchurned[1:], rtol=1e-2)


@each_sampler
@pytest.mark.parametrize("steps", [1, 5])
def test_a_denoiser_that_knows_the_image_gives_it(sampler, steps):
    z, keys = start(3, 4)
    x = draw(sampler, known, COSINE, steps, z, keys)
    np.testing.assert_allclose(x, np.tile(MEAN, (3, 1)), atol=1e-3)


@each_of("ddim-0", "dpm_solver", "heun")
def test_without_noise_samplers_do_not_look_at_the_keys(sampler):
    z, keys = start(16, 1)
    same = [draw(sampler, mixture, COSINE, 12, z, k) for k in (keys, keys, sample_keys(77, jnp.arange(16)))]
    np.testing.assert_array_equal(same[0], same[1])
    np.testing.assert_array_equal(same[0], same[2])


@each_of("ddpm", "ddim-0.5", "heun-churn")
def test_another_key_is_another_sample(sampler):
    z, keys = start(16, 1)
    other = sample_keys(77, jnp.arange(16))
    assert (
        np.abs(draw(sampler, mixture, COSINE, 12, z, keys) - draw(sampler, mixture, COSINE, 12, z, other)).max() > 0.1
    )


@pytest.mark.parametrize(
    "sampler, expected",
    [
        (ddpm, [1.0, 0.75, 0.5, 0.25]),
        (ddim, [1.0, 0.75, 0.5, 0.25]),
        (partial(ddim, grid=quadratic), [1.0, 0.5625, 0.25, 0.0625]),
        (dpm_solver, np.array([1.0, 0.75, 0.5, 0.25]) * 0.996147),
        (partial(heun, grid=uniform), np.array([1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]) * 0.996147),
    ],
    ids=["ddpm", "ddim", "ddim-quadratic", "dpm_solver", "heun"],
)
def test_the_denoiser_is_asked_at_every_time_of_the_grid_but_the_last(sampler, expected):
    times = []
    z, keys = start(1, 1)

    def denoise(z, t):
        jax.debug.callback(lambda t: times.append(float(t)), t, ordered=True)
        return z

    sampler(denoise, z, keys, COSINE, 4).block_until_ready()
    jax.effects_barrier()
    np.testing.assert_allclose(times, expected, rtol=1e-6)


@partial(jax.jit, compiler_options=QUICKLY)
def some_noise(keys, step):
    return noise(keys, step, (4, 4, 3))


def test_noise_is_gaussian():
    """Not uniform, nor of another scale: moments of 2^16 draws within 5 standard errors."""
    drawn = np.asarray(noise(sample_keys(3, jnp.arange(64)), 5, (32, 32, 1)), np.float64)
    for power, moment, spread in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert np.mean(drawn**power) == pytest.approx(moment, abs=5 * math.sqrt(spread / drawn.size))
    assert np.abs(drawn).max() > 3.5


def test_the_noise_of_a_sample_is_a_function_of_seed_and_index():
    def images(indices, seed=7, step=2):
        return np.asarray(some_noise(sample_keys(seed, jnp.asarray(indices)), step))

    batch = images(range(16))
    np.testing.assert_array_equal(images([5])[0], batch[5])  # alone
    np.testing.assert_array_equal(images(range(20, 4, -1))[15], batch[5])  # at another place of another batch
    distinct = np.concatenate([batch, images(range(16), seed=8), images(range(16), step=3)]).reshape(48, -1)
    assert np.abs(np.corrcoef(distinct) - np.eye(48)).max() < 0.75  # of 48 numbers each; a copy would be 1


def test_the_noise_of_a_sample_is_the_same_on_a_mesh():
    keys = sample_keys(7, jnp.arange(16))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    on_mesh = some_noise(jax.device_put(keys, split), 2)
    assert len(on_mesh.sharding.device_set) == 8
    np.testing.assert_array_equal(on_mesh, some_noise(keys, 2))


@each_of("ddpm", "ddim-0.5", "heun-churn")
def test_a_sample_is_the_same_alone_and_in_a_batch(sampler):
    z, keys = start(16, 1)
    together = draw(sampler, mixture, COSINE, 12, z, keys)
    np.testing.assert_allclose(draw(sampler, mixture, COSINE, 12, z[5:6], keys[5:6]), together[5:6], atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_too_few_steps_are_refused(sampler):
    with pytest.raises(ConfigError, match="steps 0 is too few"):
        sampler(known(COSINE), *start(1, 4), COSINE, 0)


SETTINGS = {
    "grid": "uniform",
    "eta": 0.0,
    "variance": "small",
    "churn": 0.0,
    "churn_range": (0.0, math.inf),
    "churn_noise": 1.0,
}


@pytest.mark.parametrize(
    "name, settings, same",
    [
        ("ddpm", {"eta": 1.0, "churn": 9.0}, ddpm),
        ("ddpm", {"variance": "large"}, DDPM_LARGE),
        ("ddim", {"eta": 1.0, "variance": "large"}, DDIM_1),
        ("ddim", {"grid": "quadratic"}, GRIDDED[ddim, quadratic]),
        ("dpm_solver", {}, dpm_solver),
        ("heun", {"grid": "karras", "churn": 40.0, "churn_range": (0.01, 50.0)}, HEUN_CHURN),
    ],
    # names only: an address differs from process to process
    ids=lambda value: None if callable(value) else str(value),
)
def test_samplers_by_name(name, settings, same):
    given = start(16, 1)
    named = samplers.by_name(name, **{**SETTINGS, **settings})
    np.testing.assert_array_equal(draw(named, mixture, COSINE, 12, *given), draw(same, mixture, COSINE, 12, *given))


@pytest.mark.parametrize(
    "name, settings, said",
    [
        ("euler", {}, "'euler' is not known: choose one of ddpm, ddim, dpm_solver, heun"),
        ("ddpm", {"variance": "medium"}, "variance 'medium' is not known: choose one of small, large, learned"),
        ("ddpm", {"grid": "cubic"}, "grid 'cubic' is not known"),
        ("ddim", {"eta": -0.1}, "eta -0.1 is not in"),
        ("ddim", {"eta": 1.5}, "eta 1.5 is not in"),
        ("heun", {"churn": -1.0}, "churn -1.0 .* must not be below 0"),
        ("heun", {"churn_noise": -1.0}, "churn_noise -1.0 must not be below 0"),
        ("heun", {"churn_range": (2.0, 1.0)}, "churn_range 2.0, 1.0 is no range"),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(name, settings, said):
    with pytest.raises(ConfigError, match=said):
        samplers.by_name(name, **{**SETTINGS, **settings})
