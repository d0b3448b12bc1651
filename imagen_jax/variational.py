"""The variational bound of a diffusion model, and the variances of reverse steps that a network learns by it.

A reverse step leads from z at a time t to z at s < t. Its variance lies between that of q(z_s | z_t, x), right for an
image that is known, and that of q(z_t | z_s), right for an image of independent standard Gaussian pixels. A network
says by ``v``, about -1 for the first and 1 for the second, where between them it is (arXiv:2102.09672, Section 3.1).

Images and ``v`` are [B, ...]; logsnr is [B] or a scalar.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr

from imagen_jax.diffusion import per_example
from imagen_jax.schedules import Schedule, signal

# The chain whose bound is computed: the 1000 steps of DDPM. Times are continuous, so each t has a chain of its own.
STEPS = 1000
# Half of what tells a value of a uint8 image from the next, when all of them are spread over [-1, 1].
HALF_BIN = 1 / 255
# A bin is never taken for less likely: an image that is missed by far would else drown every other loss.
LOG_LIKELIHOOD_MIN = math.log(1e-12)


def log_variance_bounds(logsnr_t: jax.Array, logsnr_s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(lower, upper) of the log-variance of the step from z_t to z_s, each of the shape of logsnr.

    Lower is that of q(z_s | z_t, x), sigma_s² (1 - SNR_t / SNR_s); upper is that of q(z_t | z_s), which has sigma_t² in
    the place of sigma_s² (arXiv:2102.09672, Eq. 10 and 15).
    """
    # exact for short steps and for long ones; a step of no length has no variance, whose logarithm is kept finite
    renewed = jnp.log(jnp.maximum(-jnp.expm1(logsnr_t - logsnr_s), 1e-7))
    return jax.nn.log_sigmoid(-logsnr_s) + renewed, jax.nn.log_sigmoid(-logsnr_t) + renewed


def interpolate(v: jax.Array, lower: jax.Array, upper: jax.Array) -> jax.Array:
    """The log-variance [B, ...] that v means: ``lower`` [B] at -1, ``upper`` [B] at 1 (arXiv:2102.09672, Eq. 15)."""
    share = (v.astype(jnp.float32) + 1) / 2
    return share * per_example(upper, v) + (1 - share) * per_example(lower, v)


def posterior_mean(x: jax.Array, z: jax.Array, logsnr_t: jax.Array, logsnr_s: jax.Array) -> jax.Array:
    """The mean [B, ...] of q(z_s | z_t, x) (arXiv:2205.11487, Eq. 3)."""
    fall = logsnr_t - logsnr_s
    kept = jnp.exp(fall) * signal(logsnr_s) / signal(logsnr_t)
    return per_example(kept, z) * z + per_example(-jnp.expm1(fall) * signal(logsnr_s), x) * x


def gaussian_kl(mean: jax.Array, log_variance: jax.Array, other_mean: jax.Array, other: jax.Array) -> jax.Array:
    """KL(N(mean, exp(log_variance)) ‖ N(other_mean, exp(other))) of each number, in nats; shapes are broadcast."""
    ratio = log_variance - other
    return 0.5 * (jnp.expm1(ratio) - ratio + (mean - other_mean) ** 2 * jnp.exp(-other))


def discretised_log_likelihood(x: jax.Array, mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """How likely a Gaussian falls into the bin of each number of an image, in nats (arXiv:2006.11239, Eq. 13).

    Args:
        x: images made of uint8, in [-1, 1]: a value is 2/255 from the next, and the bins of the ends have no end.
        mean: of the Gaussian, of the shape of x.
        log_variance: of the Gaussian, likewise.

    Returns:
        Of the shape of x; at least LOG_LIKELIHOOD_MIN.
    """
    inverse = jnp.exp(-log_variance / 2)
    below = jnp.where(x < -1 + HALF_BIN, -jnp.inf, (x - HALF_BIN - mean) * inverse)
    above = jnp.where(x > 1 - HALF_BIN, jnp.inf, (x + HALF_BIN - mean) * inverse)
    # In the upper tail, where the distribution is rounded to 1, the mirrored bin of the lower tail is as likely.
    low, high = jnp.where(below > 0, -above, below), jnp.where(below > 0, -below, above)
    # Beyond 30 deviations all is less likely than the least, and gradients are not numbers.
    log_low, log_high = log_ndtr(jnp.clip(low, -30, 30)), log_ndtr(jnp.clip(high, -30, 30))
    log_share = jnp.log(-jnp.expm1(jnp.minimum(log_low - log_high, -1e-7)))
    return jnp.maximum(log_high + log_share, LOG_LIKELIHOOD_MIN)


def bound(
    x: jax.Array, x_hat: jax.Array, v: jax.Array, z: jax.Array, schedule: Schedule, t: jax.Array, steps: int = STEPS
) -> jax.Array:
    """What the steps from t to t - 1/T contribute to the variational bound, times T: bits per dimension, [B].

    The mean over uniform t is the bound, without the term of the prior, which no network changes: the KL of
    q(z_s | z_t, x) from the network's step, or where t - 1/T is below 0, minus the log-likelihood of the image itself
    in a step to 0 (arXiv:2102.09672, Eq. 4-7).

    No gradient reaches ``x_hat``: the bound is there to teach v (Section 3.1).

    Args:
        x: images made of uint8, [B, ...] in [-1, 1].
        x_hat: what the network takes for x.
        v: where the network says that the variance lies.
        z: z_t.
        schedule: the noise schedule.
        t: [B] in [0, 1].
        steps: T.
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
    nats = jnp.where(per_example(t > 1 / steps, x), kl, -discretised_log_likelihood(x, mean, log_variance))
    return steps / math.log(2) * jnp.mean(nats, axis=tuple(range(1, nats.ndim)))
