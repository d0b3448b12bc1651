import functools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import samplers, schedules
from imagen_jax.errors import UsageError
from imagen_jax.samplers import ddim, ddpm, noise, sample_keys, time_grid
from imagen_jax.schedules import Schedule

COSINE, LINEAR = schedules.cosine(), schedules.linear()
# Four Gaussians at once, one a dimension.
MEAN = np.float32([-0.6, 0.0, 0.3, 2.0])
DEVIATION = np.float32([0.4, 0.5, 1.0, 1.5])
# A mixture of two in one dimension, two-peaked and lopsided.
WEIGHTS, CENTRES, WIDTH = np.float32([0.3, 0.7]), np.float32([-1.0, 0.5]), 0.3

# For what is small: half the time to compile, and the same mathematics.
QUICKLY = {"xla_backend_optimization_level": 0}

each_sampler = pytest.mark.parametrize(
    "sampler",
    [ddpm, *(partial(ddim, eta=eta) for eta in (0.0, 0.5, 1.0))],
    ids=["ddpm", "ddim-0", "ddim-0.5", "ddim-1"],
)


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


DDIM_1 = partial(ddim, eta=1.0)


@partial(jax.jit, static_argnames=("sampler", "denoiser", "schedule", "steps"))
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


@each_sampler
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
    return np.reshape(below, (-1, 2)) @ WEIGHTS


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


def test_ddim_is_of_first_order_on_a_mixture():
    """In one dimension its limit keeps quantiles: x lies as high in the mixture as z_1 did in the noise."""
    z, keys = start(256, 1)
    quantile = cdf(np.asarray(z)[:, 0], float(COSINE.alpha(1.0)), float(COSINE.sigma(1.0)))
    steps = [32, 64, 128]
    errors = []
    for n in steps:
        x = np.asarray(draw(ddim, mixture, COSINE, n, z, keys), np.float64)[:, 0]
        errors.append(np.abs(cdf(x, 1.0, 0.0) - quantile).mean())
    assert errors[-1] < 0.02
    assert order_of(errors, steps) == pytest.approx(1, abs=0.2)


@each_sampler
@pytest.mark.parametrize("steps", [1, 5])
def test_a_denoiser_that_knows_the_image_gives_it(sampler, steps):
    z, keys = start(3, 4)
    x = draw(sampler, known, COSINE, steps, z, keys)
    np.testing.assert_allclose(x, np.tile(MEAN, (3, 1)), atol=1e-3)


def test_ddim_without_noise_does_not_look_at_the_keys():
    z, keys = start(16, 1)
    other = sample_keys(77, jnp.arange(16))
    same = [draw(ddim, mixture, COSINE, 12, z, k) for k in (keys, keys, other)]
    np.testing.assert_array_equal(same[0], same[1])
    np.testing.assert_array_equal(same[0], same[2])
    assert np.abs(draw(ddpm, mixture, COSINE, 12, z, keys) - draw(ddpm, mixture, COSINE, 12, z, other)).max() > 0.1


def test_the_denoiser_is_asked_at_every_time_of_the_grid_but_the_last():
    times = []
    z, keys = start(1, 1)

    def denoise(z, t):
        jax.debug.callback(lambda t: times.append(float(t)), t, ordered=True)
        return z

    ddpm(denoise, z, keys, COSINE, 4).block_until_ready()
    jax.effects_barrier()
    assert times == [1.0, 0.75, 0.5, 0.25]


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


def test_a_sample_is_the_same_alone_and_in_a_batch():
    z, keys = start(16, 1)
    together = draw(ddpm, mixture, COSINE, 12, z, keys)
    np.testing.assert_allclose(draw(ddpm, mixture, COSINE, 12, z[5:6], keys[5:6]), together[5:6], atol=1e-5)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_grid_leads_from_noise_to_clean(steps):
    t, s = time_grid(steps)
    assert t.shape == s.shape == (steps,)
    assert t[0] == 1 and s[-1] == 0
    np.testing.assert_array_equal(t[1:], s[:-1])
    np.testing.assert_allclose(t - s, 1 / steps, rtol=1e-6)


@pytest.mark.parametrize("steps", [0, -3])
def test_too_few_steps_are_refused(steps):
    with pytest.raises(UsageError, match=f"steps {steps} is too few"):
        time_grid(steps)


def test_samplers_by_name():
    given = start(16, 1)
    np.testing.assert_array_equal(
        draw(samplers.by_name("ddpm", 0.0), mixture, COSINE, 12, *given), draw(ddpm, mixture, COSINE, 12, *given)
    )
    np.testing.assert_array_equal(
        draw(samplers.by_name("ddim", 1.0), mixture, COSINE, 12, *given),
        draw(DDIM_1, mixture, COSINE, 12, *given),
    )


def test_an_unknown_sampler_is_refused():
    with pytest.raises(UsageError, match="'euler'.*ddpm or ddim"):
        samplers.by_name("euler", 0.0)


@pytest.mark.parametrize("eta", [-0.1, 1.5])
def test_an_eta_that_is_none_is_refused(eta):
    with pytest.raises(UsageError, match=f"eta {eta} is not in"):
        samplers.by_name("ddim", eta)
