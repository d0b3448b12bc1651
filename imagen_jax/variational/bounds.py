"""Bounds of log p(x) from groups of latents with Gaussian prior and posterior, and how their terms are weighted.

A posterior is given in units of its prior N(mu, sigma²), as in NVAE (arXiv:2007.03898, Eq. 2): its mean is mu + sigma ·
`delta_mean`, and its standard deviation sigma · exp(`delta_log_std`). Then neither its divergence nor its noise depends
on the prior, and nothing is divided by a small sigma.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

# the variance over images from which a posterior mean counts as active (arXiv:1509.00519, Section 5.2)
ACTIVE_VARIANCE = 0.01


def residual_kl(delta_mean: jax.Array, delta_log_std: jax.Array) -> jax.Array:
    """Returns KL(posterior ‖ prior) of each latent in nats (arXiv:2007.03898, Eq. 2)."""
    return 0.5 * (jnp.square(delta_mean) + jnp.expm1(2 * delta_log_std)) - delta_log_std


def log_prior_to_posterior(prior_noise: jax.Array, noise: jax.Array, delta_log_std: jax.Array) -> jax.Array:
    """Returns log p(z) - log q(z|x) of each latent in nats.

    Args:
        prior_noise: (z - mu) / sigma for the prior, which is `delta_mean` + exp(`delta_log_std`) · `noise`.
        noise: the same for the posterior.
        delta_log_std: of the posterior.
    """
    return 0.5 * (jnp.square(noise) - jnp.square(prior_noise)) + delta_log_std


def sum_latents(values: jax.Array) -> jax.Array:
    """Returns the sums [B] of values [B, ...]."""
    return jnp.sum(values.astype(jnp.float32), axis=tuple(range(1, values.ndim)))


def elbo(log_likelihood: jax.Array, kls: jax.Array) -> jax.Array:
    """Returns the evidence lower bound [B] in nats, from log p(x|z) [B] and divergences of groups [B, G]."""
    return log_likelihood - jnp.sum(kls, axis=-1)


def iwae_bound(log_weights: jax.Array) -> jax.Array:
    """Returns the importance-weighted bound [B] in nats, which rises to log p(x) with K (arXiv:1509.00519, Eq. 8).

    Args:
        log_weights: log p(x, z) - log q(z|x) of K samples of z, [K, B].
    """
    return jax.nn.logsumexp(log_weights, axis=0) - math.log(len(log_weights))


def bits_per_dim(nats: jax.Array, dims: int) -> jax.Array:
    """Returns bits per dimension for nats of images with so many values."""
    return nats / (math.log(2) * dims)


def warmup_weight(step: jax.Array, steps: int) -> jax.Array:
    """Returns the weight of divergences after `step` steps: it rises from 1/`steps` to 1 (arXiv:1602.02282).

    Without warm-up, at `steps` 0, it is 1.
    """
    return jnp.minimum((step + 1) / max(steps, 1), 1.0).astype(jnp.float32)


def balanced_weights(kls: jax.Array, sizes: Sequence[int], weight: jax.Array) -> jax.Array:
    """Returns weights of divergences [B, G] during warm-up, after which all are 1 (arXiv:2007.03898, Appendix A).

    A group that diverges less than others, for its number of latents, is weighed less, until it is used, too; the mean
    over groups is `weight`. Weights are of each example, not of the batch, and no gradient flows to them.

    Args:
        kls: divergences of groups in nats.
        sizes: number of positions of each group.
        weight: [B], of `warmup_weight`.
    """
    scaled = jax.lax.stop_gradient(kls) / (jnp.asarray(sizes, jnp.float32) / max(sizes)) + 1e-3
    balanced = weight[:, None] * scaled / jnp.mean(scaled, axis=-1, keepdims=True)
    return jnp.where(weight[:, None] < 1, balanced, 1.0)


def active_units(means: jax.Array) -> jax.Array:
    """Returns which latents are active, bool [...], from the means of their posteriors for N images [N, ...].

    They are those whose mean depends on the image: its variance is above `ACTIVE_VARIANCE` (arXiv:1509.00519, Section
    5.2).
    """
    return jnp.var(means.astype(jnp.float32), axis=0) > ACTIVE_VARIANCE
