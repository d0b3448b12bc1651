"""The variational lower bound (VLB) of a diffusion model, which trains the learned variances of reverse steps.

Images and `v`, see `process`, are [B, ...].
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr

from imagen_jax.diffusion.process import append_dims, learned_log_variance, log_variance_bounds, posterior_mean
from imagen_jax.diffusion.schedules import Schedule

# Number of timesteps T of the discrete chain whose bound is computed, as in DDPM. Times are continuous, so that each t
# has its own chain.
_NUM_TIMESTEPS = 1000
# Half the distance between two values of a uint8 image in [-1, 1].
_HALF_BIN = 1 / 255
# Clamps the log-likelihood so that outliers do not dominate the loss.
_LOG_LIKELIHOOD_MIN = math.log(1e-12)


def _gaussian_kl(mean1: jax.Array, logvar1: jax.Array, mean2: jax.Array, logvar2: jax.Array) -> jax.Array:
    """Returns KL(N(mean1, exp(logvar1)) ‖ N(mean2, exp(logvar2))) elementwise, in nats; shapes are broadcast."""
    log_ratio = logvar1 - logvar2
    return 0.5 * (jnp.expm1(log_ratio) - log_ratio + (mean1 - mean2) ** 2 * jnp.exp(-logvar2))


def _discretized_log_likelihood(
    x: jax.Array, mean: jax.Array, log_variance: jax.Array, half_bin: float = _HALF_BIN
) -> jax.Array:
    """Returns the log-probability of the bin of each value of an image under a Gaussian (arXiv:2006.11239, Eq. 13).

    Args:
        x: images of integer values, scaled to [-1, 1]; the bins of -1 and 1 extend to infinity.
        mean: mean of the Gaussian, of the shape of x.
        log_variance: log-variance of the Gaussian, of the shape of x.
        half_bin: half the distance between two values of x: 1/255 for uint8, 1/65535 for uint16.

    Returns:
        In nats, of the shape of x; at least _LOG_LIKELIHOOD_MIN.
    """
    inverse = jnp.exp(-log_variance / 2)
    below = jnp.where(x < -1 + half_bin, -jnp.inf, (x - half_bin - mean) * inverse)
    above = jnp.where(x > 1 - half_bin, jnp.inf, (x + half_bin - mean) * inverse)
    # in the upper tail the CDF rounds to 1: use the mirrored bin in the lower tail, of equal probability
    low, high = jnp.where(below > 0, -above, below), jnp.where(below > 0, -below, above)
    # beyond 30 deviations all is below LOG_LIKELIHOOD_MIN, and gradients are NaN
    log_low, log_high = log_ndtr(jnp.clip(low, -30, 30)), log_ndtr(jnp.clip(high, -30, 30))
    log_fraction = jnp.log(-jnp.expm1(jnp.minimum(log_low - log_high, -1e-7)))
    return jnp.maximum(log_high + log_fraction, _LOG_LIKELIHOOD_MIN)


def vlb_loss(
    x: jax.Array,
    x_hat: jax.Array,
    v: jax.Array,
    z: jax.Array,
    schedule: Schedule,
    t: jax.Array,
    steps: int = _NUM_TIMESTEPS,
    half_bin: float = _HALF_BIN,
) -> jax.Array:
    """Returns the terms of the variational bound of the steps from t to t - 1/T, times T: bits per dimension, [B].

    Their mean over uniform t is the bound, without the prior term, which does not depend on the network. A term is the
    KL divergence of the network's step from q(z_s | z_t, x), or, where t - 1/T is below 0, the negative log-likelihood
    of the image in a step to 0 (arXiv:2102.09672, Eq. 4-7).

    No gradient flows to `x_hat`: the bound trains v only (Section 3.1).

    Args:
        x: images of integer values, scaled to [-1, 1], [B, ...].
        x_hat: the network's estimate of x, [B, ...].
        v: interpolates the log-variance, see `process.learned_log_variance`; [B, ...].
        z: z_t, [B, ...].
        schedule: the noise schedule.
        t: [B] in [0, 1].
        steps: T.
        half_bin: see `_discretized_log_likelihood`.
    """
    x_hat = jax.lax.stop_gradient(x_hat).astype(jnp.float32)
    s = jnp.maximum(t - 1 / steps, 0.0)
    logsnr_t, logsnr_s = schedule.logsnr(t), schedule.logsnr(s)
    lower, upper = log_variance_bounds(logsnr_t, logsnr_s)
    # the variance of q(z_0 | z_t, x) is nearly 0: the last step's lower bound is that of the step before
    floor, _ = log_variance_bounds(schedule.logsnr(jnp.float32(2 / steps)), schedule.logsnr(jnp.float32(1 / steps)))
    log_variance = learned_log_variance(v, jnp.minimum(jnp.maximum(lower, floor), upper), upper)
    mean = posterior_mean(x_hat, z, logsnr_t, logsnr_s)
    kl = _gaussian_kl(posterior_mean(x, z, logsnr_t, logsnr_s), append_dims(lower, x), mean, log_variance)
    nats = jnp.where(append_dims(t > 1 / steps, x), kl, -_discretized_log_likelihood(x, mean, log_variance, half_bin))
    return steps / math.log(2) * jnp.mean(nats, axis=tuple(range(1, nats.ndim)))
