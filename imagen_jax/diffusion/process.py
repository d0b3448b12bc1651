"""The diffusion process: noising, the three kinds of prediction, a step back, and the loss of each example.

    z_t = alpha_t * x + sigma_t * eps            (arXiv:2205.11487, Section 2.1)

Alpha, sigma and logsnr are given per example, [B] or scalar, and are broadcast over the axes of x.

A step back leads from z at a time t to z at s < t. Its variance lies between that of q(z_s | z_t, x), right for an
image that is known, and that of q(z_t | z_s), right for an image of independent standard Gaussian pixels. A network
says by ``v``, about -1 for the first and 1 for the second, where between them it is (arXiv:2102.09672, Section 3.1).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.schedules import signal

Prediction = Literal["eps", "x", "v"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)
Weight = Literal["simple", "sigmoid", "min_snr", "edm"]
WEIGHTS: tuple[str, ...] = get_args(Weight)


def per_example(values: jax.Array, like: jax.Array) -> jax.Array:
    """Values [B] (or a scalar) with axes of length 1 added, to be broadcast over ``like`` [B, ...]."""
    values = jnp.asarray(values)
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim)) if values.ndim else values


def add_noise(x: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """z_t of x and Gaussian noise eps, both [B, ...]."""
    return per_example(alpha, x) * x + per_example(sigma, x) * eps


def prediction_target(x: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array, kind: Prediction) -> jax.Array:
    """What a network of that kind is trained to say: eps, x, or v = alpha·eps - sigma·x (arXiv:2202.00512, App. D)."""
    match kind:
        case "eps":
            return eps
        case "x":
            return x
        case "v":
            return per_example(alpha, x) * eps - per_example(sigma, x) * x
    raise ValueError(f"prediction {kind!r} is not one of {PREDICTIONS}")


def to_x_and_eps(
    prediction: jax.Array, z: jax.Array, alpha: jax.Array, sigma: jax.Array, kind: Prediction
) -> tuple[jax.Array, jax.Array]:
    """(x_hat, eps_hat) that a prediction at z_t means; the one place where the kinds are converted."""
    alpha, sigma = per_example(alpha, z), per_example(sigma, z)
    match kind:
        case "eps":
            return (z - sigma * prediction) / alpha, prediction
        case "x":
            return prediction, (z - alpha * prediction) / sigma
        case "v":
            return alpha * z - sigma * prediction, sigma * z + alpha * prediction
    raise ValueError(f"prediction {kind!r} is not one of {PREDICTIONS}")


def eps_from_x(x: jax.Array, z: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """The noise that leads from x to z_t: what a prediction of x means for eps."""
    return to_x_and_eps(x, z, alpha, sigma, "x")[1]


def noise_shares(logsnr_t: jax.Array, logsnr_s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(kept, renewed): exp(logsnr_t - logsnr_s) and 1 minus it, each exact in float32 where the other is nearly 1."""
    fall = logsnr_t - logsnr_s
    return jnp.exp(fall), -jnp.expm1(fall)


def log_variance_bounds(logsnr_t: jax.Array, logsnr_s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(lower, upper) of the log-variance of the step from z_t to z_s, each of the shape of logsnr.

    Lower is that of q(z_s | z_t, x), sigma_s² (1 - SNR_t / SNR_s); upper is that of q(z_t | z_s), which has sigma_t² in
    the place of sigma_s² (arXiv:2102.09672, Eq. 10 and 15).
    """
    # exact for short steps and for long ones; a step of no length has no variance, whose logarithm is kept finite
    log_renewed = jnp.log(jnp.maximum(noise_shares(logsnr_t, logsnr_s)[1], 1e-7))
    return jax.nn.log_sigmoid(-logsnr_s) + log_renewed, jax.nn.log_sigmoid(-logsnr_t) + log_renewed


def interpolate(v: jax.Array, lower: jax.Array, upper: jax.Array) -> jax.Array:
    """The log-variance [B, ...] that v means: ``lower`` [B] at -1, ``upper`` [B] at 1 (arXiv:2102.09672, Eq. 15)."""
    share = (v.astype(jnp.float32) + 1) / 2
    return share * per_example(upper, v) + (1 - share) * per_example(lower, v)


def posterior_mean(x: jax.Array, z: jax.Array, logsnr_t: jax.Array, logsnr_s: jax.Array) -> jax.Array:
    """The mean [B, ...] of q(z_s | z_t, x) (arXiv:2205.11487, Eq. 3)."""
    kept, renewed = noise_shares(logsnr_t, logsnr_s)
    alpha_t, alpha_s = signal(logsnr_t), signal(logsnr_s)
    return per_example(kept * (alpha_s / alpha_t), z) * z + per_example(renewed * alpha_s, x) * x


def squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """The loss of each example, [B]: the mean of squares over all other axes, in float32."""
    error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    return jnp.mean(error**2, axis=tuple(range(1, error.ndim)))


def loss_weight(
    logsnr: jax.Array, prediction: Prediction, kind: Weight, *, bias: float, min_snr_gamma: float, sigma_data: float
) -> jax.Array:
    """What the squared error of a prediction counts at noise levels [B], [B].

    "simple" is 1 whatever is predicted. The others are given here for errors of eps, and come to the same for those of
    x and v:

        "sigmoid"  sigmoid(bias - logsnr)      (arXiv:2303.00848, Section 5); a larger bias gives more to little noise;
        "min_snr"  min(1, min_snr_gamma / SNR)                  (arXiv:2303.09556, Section 3.4): min(SNR, γ) of x;
        "edm"      1 + 1 / (SNR · sigma_data²)                  (arXiv:2206.00364, Table 1; with SNR = 1 / σ²).

    Args:
        logsnr: [B], within the range of schedules: "edm" grows as 1 / SNR.
        prediction: what the network predicts.
        kind: see above.
        bias: of "sigmoid".
        min_snr_gamma: γ of "min_snr", above 0.
        sigma_data: standard deviation of the images, of "edm", above 0.
    """
    # in logarithms: ratios of SNR do not overflow
    match kind:
        case "simple":
            return jnp.ones_like(logsnr)
        case "sigmoid":
            of_eps = jax.nn.log_sigmoid(bias - logsnr)
        case "min_snr":
            of_eps = jnp.minimum(math.log(min_snr_gamma) - logsnr, 0.0)
        case "edm":
            of_eps = jax.nn.softplus(-logsnr - 2 * math.log(sigma_data))
        case _:
            raise ValueError(f"weight {kind!r} is not one of {WEIGHTS}")
    # squared errors of one network: eps = SNR · x, v = (1 + SNR) · x
    per_eps = {"eps": jnp.zeros_like(logsnr), "x": logsnr, "v": jax.nn.log_sigmoid(logsnr)}[prediction]
    return jnp.exp(of_eps + per_eps)


def stratified_times(key: jax.Array, batch: int) -> jax.Array:
    """Times [B], each U(0, 1) by itself, but one in each B-th of [0, 1]: less variance (arXiv:2107.00630, App. I.1)."""
    offset = jax.random.uniform(key)
    return (offset + jnp.arange(batch) / batch) % 1.0
