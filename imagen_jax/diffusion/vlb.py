"""The variational bound of a diffusion model, by which a network learns the variances of steps back.

Images and ``v``, as of ``diffusion``, are [B, ...].
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr

from imagen_jax.diffusion.process import interpolate, log_variance_bounds, per_example, posterior_mean
from imagen_jax.diffusion.schedules import Schedule

# The chain whose bound is computed: the 1000 steps of DDPM. Times are continuous, so each t has a chain of its own.
STEPS = 1000
# Half of what tells a value of a uint8 image from the next, when all of them are spread over [-1, 1].
HALF_BIN = 1 / 255
# A bin is never taken for less likely: an image that is missed by far would else drown every other loss.
LOG_LIKELIHOOD_MIN = math.log(1e-12)


def gaussian_kl(mean: jax.Array, log_variance: jax.Array, other_mean: jax.Array, other: jax.Array) -> jax.Array:
    """KL(N(mean, exp(log_variance)) ‖ N(other_mean, exp(other))) of each number, in nats; shapes are broadcast."""
    ratio = log_variance - other
    return 0.5 * (jnp.expm1(ratio) - ratio + (mean - other_mean) ** 2 * jnp.exp(-other))


def discretised_log_likelihood(
    x: jax.Array, mean: jax.Array, log_variance: jax.Array, half_bin: float = HALF_BIN
) -> jax.Array:
    """How likely a Gaussian falls into the bin of each number of an image, in nats (arXiv:2006.11239, Eq. 13).

    Args:
        x: images made of whole numbers, in [-1, 1]; the bins of the ends have no end.
        mean: of the Gaussian, of the shape of x.
        log_variance: of the Gaussian, likewise.
        half_bin: half of what tells a value of x from the next: 1/255 of uint8, 1/65535 of uint16.

    Returns:
        Of the shape of x; at least LOG_LIKELIHOOD_MIN.
    """
    inverse = jnp.exp(-log_variance / 2)
    below = jnp.where(x < -1 + half_bin, -jnp.inf, (x - half_bin - mean) * inverse)
    above = jnp.where(x > 1 - half_bin, jnp.inf, (x + half_bin - mean) * inverse)
    # In the upper tail, where the distribution is rounded to 1, the mirrored bin of the lower tail is as likely.
    low, high = jnp.where(below > 0, -above, below), jnp.where(below > 0, -below, above)
    # Beyond 30 deviations all is less likely than the least, and gradients are not numbers.
    log_low, log_high = log_ndtr(jnp.clip(low, -30, 30)), log_ndtr(jnp.clip(high, -30, 30))
    log_share = jnp.log(-jnp.expm1(jnp.minimum(log_low - log_high, -1e-7)))
    return jnp.maximum(log_high + log_share, LOG_LIKELIHOOD_MIN)


def bound(
    x: jax.Array,
    x_hat: jax.Array,
    v: jax.Array,
    z: jax.Array,
    schedule: Schedule,
    t: jax.Array,
    steps: int = STEPS,
    half_bin: float = HALF_BIN,
) -> jax.Array:
    """What the steps from t to t - 1/T contribute to the variational bound, times T: bits per dimension, [B].

    The mean over uniform t is the bound, without the term of the prior, which no network changes: the KL of
    q(z_s | z_t, x) from the network's step, or where t - 1/T is below 0, minus the log-likelihood of the image itself
    in a step to 0 (arXiv:2102.09672, Eq. 4-7).

    No gradient reaches ``x_hat``: the bound is there to teach v (Section 3.1).

    Args:
        x: images made of whole numbers, [B, ...] in [-1, 1].
        x_hat: what the network takes for x.
        v: where the network says that the variance lies.
        z: z_t.
        schedule: the noise schedule.
        t: [B] in [0, 1].
        steps: T.
        half_bin: of x, as of ``discretised_log_likelihood``.
    """
    x_hat = jax.lax.stop_gradient(x_hat).astype(jnp.float32)
    s = jnp.maximum(t - 1 / steps, 0.0)
    logsnr_t, logsnr_s = schedule.logsnr(t), schedule.logsnr(s)
    lower, upper = log_variance_bounds(logsnr_t, logsnr_s)
    # q(z_0 | z_t, x) hardly varies: the last step's lower bound is that of the step before it
    floor, _ = log_variance_bounds(schedule.logsnr(jnp.float32(2 / steps)), schedule.logsnr(jnp.float32(1 / steps)))
    log_variance = interpolate(v, jnp.minimum(jnp.maximum(lower, floor), upper), upper)
    mean = posterior_mean(x_hat, z, logsnr_t, logsnr_s)
    kl = gaussian_kl(posterior_mean(x, z, logsnr_t, logsnr_s), per_example(lower, x), mean, log_variance)
    nats = jnp.where(per_example(t > 1 / steps, x), kl, -discretised_log_likelihood(x, mean, log_variance, half_bin))
    return steps / math.log(2) * jnp.mean(nats, axis=tuple(range(1, nats.ndim)))
