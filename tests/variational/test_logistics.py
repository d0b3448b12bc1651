"""The discretized mixture of logistics is a distribution over images, and samples have its probabilities."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.variational.logistics import log_likelihood, mean, num_parameters, read_mixture, sample


def mixture_of(channels, components, levels, scale=1.0, pixels=5):
    shape = (pixels, num_parameters(channels, components))
    return read_mixture(scale * jax.random.normal(jax.random.key(0), shape), channels, levels)


def every_pixel(channels, levels):
    values = np.linspace(-1, 1, levels)
    return jnp.asarray(list(itertools.product(values, repeat=channels)))


@pytest.mark.parametrize(("channels", "levels"), [(1, 256), (1, 65536), (2, 16), (3, 8)])
@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_sums_to_one(channels, levels, scale):
    mixture = mixture_of(channels, 3, levels, scale)
    pixels = every_pixel(channels, levels)
    logs = jax.vmap(lambda x: log_likelihood(jnp.broadcast_to(x, (5, channels)), mixture, levels))(pixels)
    np.testing.assert_allclose(jnp.exp(logs).sum(axis=0), 1, rtol=2e-4)


def test_samples_have_the_probabilities():
    levels, count = 4, 20_000
    mixture = mixture_of(2, 2, levels, pixels=1)
    keys = jax.random.split(jax.random.key(1), count)
    repeated = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), mixture)
    samples = np.asarray(sample(keys, repeated, levels))[:, 0]
    for pixel in every_pixel(2, levels):
        share = np.isclose(samples, pixel, atol=1e-5).all(axis=-1).mean()
        expected = float(jnp.exp(log_likelihood(pixel[None], mixture, levels))[0])
        assert abs(share - expected) < 4 * np.sqrt(expected / count) + 1e-4


def test_mean_is_that_of_samples_of_narrow_mixtures():
    mixture = mixture_of(3, 1, 256, scale=0.2, pixels=1)
    mixture = mixture._replace(log_scales=mixture.log_scales * 0 - 4)
    keys = jax.random.split(jax.random.key(1), 5000)
    repeated = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (5000, *leaf.shape)), mixture)
    np.testing.assert_allclose(sample(keys, repeated).mean(axis=0), mean(mixture), atol=5e-3)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_likelihood_and_gradients_are_finite_in_bf16(scale):
    parameters = scale * jax.random.normal(jax.random.key(0), (64, num_parameters(3, 5)), jnp.bfloat16)
    x = jnp.asarray(np.random.default_rng(0).integers(0, 256, (64, 3)) / 127.5 - 1)

    def loss(parameters):
        return -log_likelihood(x, read_mixture(parameters, 3)).sum()

    value, gradient = jax.value_and_grad(loss)(parameters)
    assert np.isfinite(value)
    assert bool(jnp.isfinite(gradient).all())


def test_wrong_number_of_parameters():
    with pytest.raises(ValueError, match="multiple"):
        read_mixture(jnp.zeros((1, 11)), 3)
