"""Bounds on a linear-Gaussian model, whose log p(x) is known: x = W z + noise, z ~ N(0, 1)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import multivariate_normal, norm

from imagen_jax.variational.bounds import (
    active_units,
    balanced_weights,
    bits_per_dim,
    elbo,
    iwae_bound,
    log_prior_to_posterior,
    residual_kl,
    sum_latents,
    warmup_weight,
)

LATENTS, DIMS, STD = 2, 3, 0.5
W = np.random.default_rng(0).standard_normal((DIMS, LATENTS))
X = np.random.default_rng(1).standard_normal((4, DIMS))
LOG_P = multivariate_normal.logpdf(X, jnp.zeros(DIMS), W @ W.T + STD**2 * np.eye(DIMS))
PRECISION = np.eye(LATENTS) + W.T @ W / STD**2
MEAN = X @ W @ np.linalg.inv(PRECISION).T / STD**2  # of the exact posterior
LOG_STD = np.full_like(MEAN, 0.3 - 0.5 * np.log(np.diag(PRECISION)))  # wider than it


def log_likelihood(z):
    return norm.logpdf(X, z @ W.T, STD).sum(axis=-1)


def draw(samples):
    noise = jax.random.normal(jax.random.key(0), (samples, *MEAN.shape))
    return noise, MEAN + np.exp(LOG_STD) * noise


def test_elbo_is_the_closed_form():
    # log p(x) - KL(q ‖ p(z|x)), of two Gaussians with the same mean
    covariance = np.diag(np.exp(2 * LOG_STD[0]))
    gap = 0.5 * (np.trace(PRECISION @ covariance) - LATENTS - np.log(np.linalg.det(PRECISION @ covariance)))
    _, z = draw(200_000)
    kl = sum_latents(residual_kl(jnp.asarray(MEAN), jnp.asarray(LOG_STD)))
    bound = elbo(log_likelihood(z).mean(axis=0), kl[:, None])
    assert gap > 0.1
    np.testing.assert_allclose(bound, LOG_P - gap, atol=0.02)


def test_iwae_bound_rises_to_log_p():
    noise, z = draw(200_000)
    weights = log_likelihood(z) + log_prior_to_posterior(z, noise, LOG_STD).sum(axis=-1)
    assert float(jnp.abs(iwae_bound(weights) - LOG_P).max()) < 0.01
    gaps = [LOG_P.mean() - jax.vmap(iwae_bound, 1)(weights.reshape(k, -1, 4)).mean() for k in (1, 5, 50)]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0
    # one sample is the ELBO
    kl = sum_latents(residual_kl(jnp.asarray(MEAN), jnp.asarray(LOG_STD)))
    np.testing.assert_allclose(weights.mean(axis=0), log_likelihood(z).mean(axis=0) - kl, atol=0.02)


def test_kl_is_zero_for_the_prior_and_positive_otherwise():
    delta = jnp.linspace(-4, 4, 33)
    assert float(residual_kl(jnp.float32(0), jnp.float32(0))) == 0
    assert float(jnp.min(residual_kl(jnp.float32(0), delta[delta != 0]))) > 0


def test_bits_per_dim_of_a_fair_coin():
    np.testing.assert_allclose(bits_per_dim(jnp.log(2.0) * 7, 7), 1)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.25), (2, 0.75), (3, 1.0), (1000, 1.0)])
def test_warmup(step, expected):
    assert float(warmup_weight(jnp.int32(step), 4)) == expected
    assert float(warmup_weight(jnp.int32(step), 0)) == 1


def test_balancing_spares_groups_that_are_not_used():
    kls = jnp.array([[1.0, 9.0, 9.0], [4.0, 4.0, 4.0]])
    weights = balanced_weights(kls, (4, 4, 4), jnp.array([0.5, 1.0]))
    np.testing.assert_allclose(weights.mean(axis=-1), [0.5, 1.0], rtol=1e-6)
    assert weights[0, 0] < 0.2 * weights[0, 1]
    np.testing.assert_array_equal(weights[1], 1)
    gradient = jax.grad(lambda kls: balanced_weights(kls, (4, 4, 4), jnp.array([0.5, 0.5])).sum())(kls)
    np.testing.assert_array_equal(gradient, 0)


def test_active_units():
    means = jnp.stack([jnp.zeros(64), jnp.linspace(-1, 1, 64), jnp.linspace(-0.01, 0.01, 64)], axis=-1)
    np.testing.assert_array_equal(active_units(means), [False, True, False])
