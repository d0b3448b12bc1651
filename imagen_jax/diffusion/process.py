"""The diffusion process: noising, prediction types, transitions from t to s < t, and per-example losses.

    z_t = alpha_t * x + sigma_t * eps            (arXiv:2205.11487, Section 2.1)

Alpha, sigma and logsnr are given per example, [B], or as scalars, and are broadcast over the axes of x.

A reverse step samples z_s given z_t, for s < t. Its variance lies between that of q(z_s | z_t, x), which is exact for a
single known image, and that of q(z_t | z_s), which is exact for images of independent standard Gaussian pixels. A
network with learned variances predicts `v`, about -1 for the first and 1 for the second, to interpolate between them
(arXiv:2102.09672, Section 3.1).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.schedules import alpha_from_logsnr

PredictionType = Literal["eps", "x", "v"]
PREDICTION_TYPES: tuple[str, ...] = get_args(PredictionType)
LossWeighting = Literal["simple", "sigmoid", "min_snr", "edm"]
LOSS_WEIGHTINGS: tuple[str, ...] = get_args(LossWeighting)


def append_dims(values: jax.Array, like: jax.Array) -> jax.Array:
    """Returns values [B] with axes of length 1 appended up to the rank of `like` [B, ...]; scalars stay scalars."""
    values = jnp.asarray(values)
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim)) if values.ndim else values


def add_noise(x: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """Returns z_t = alpha_t x + sigma_t eps (arXiv:2205.11487, Section 2.1).

    Args:
        x: images [B, ...].
        eps: standard Gaussian noise [B, ...].
        alpha: alpha_t, [B] or scalar.
        sigma: sigma_t, [B] or scalar.
    """
    return append_dims(alpha, x) * x + append_dims(sigma, x) * eps


def prediction_target(
    x: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array, prediction_type: PredictionType
) -> jax.Array:
    """Returns the training target [B, ...]: eps, x, or v = alpha·eps - sigma·x (arXiv:2202.00512, App. D).

    Args:
        x: images [B, ...].
        eps: the noise in z_t, [B, ...].
        alpha: alpha_t, [B] or scalar.
        sigma: sigma_t, [B] or scalar.
        prediction_type: what the network predicts.

    Raises:
        ValueError: an unknown prediction type.
    """
    match prediction_type:
        case "eps":
            return eps
        case "x":
            return x
        case "v":
            return append_dims(alpha, x) * eps - append_dims(sigma, x) * x
    raise ValueError(f"prediction_type {prediction_type!r} is not one of {PREDICTION_TYPES}")


def predict_x0_and_eps(
    prediction: jax.Array, z: jax.Array, alpha: jax.Array, sigma: jax.Array, prediction_type: PredictionType
) -> tuple[jax.Array, jax.Array]:
    """Returns (x_hat, eps_hat), [B, ...] each, from a network's prediction at z_t (arXiv:2202.00512, App. D).

    This is the only place that converts between prediction types.

    Args:
        prediction: the network's output [B, ...].
        z: z_t, [B, ...].
        alpha: alpha_t, [B] or scalar.
        sigma: sigma_t, [B] or scalar.
        prediction_type: what the network predicts.

    Raises:
        ValueError: an unknown prediction type.
    """
    alpha, sigma = append_dims(alpha, z), append_dims(sigma, z)
    match prediction_type:
        case "eps":
            return (z - sigma * prediction) / alpha, prediction
        case "x":
            return prediction, (z - alpha * prediction) / sigma
        case "v":
            return alpha * z - sigma * prediction, sigma * z + alpha * prediction
    raise ValueError(f"prediction_type {prediction_type!r} is not one of {PREDICTION_TYPES}")


def eps_from_x(x: jax.Array, z: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """Returns the noise eps [B, ...] with z_t = alpha_t x + sigma_t eps."""
    return predict_x0_and_eps(x, z, alpha, sigma, "x")[1]


def transition_coefs(logsnr_t: jax.Array, logsnr_s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (SNR_t / SNR_s, 1 - SNR_t / SNR_s) for s <= t, each accurate in float32 where the other is nearly 1."""
    difference = logsnr_t - logsnr_s
    return jnp.exp(difference), -jnp.expm1(difference)


def log_variance_bounds(logsnr_t: jax.Array, logsnr_s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (lower, upper) bounds of the log-variance of the reverse step from t to s, each of the shape of logsnr.

    The lower bound is that of q(z_s | z_t, x), sigma_s² (1 - SNR_t / SNR_s); the upper bound is that of q(z_t | z_s),
    which has sigma_t² in place of sigma_s² (arXiv:2102.09672, Eq. 10 and 15).
    """
    # accurate for short and long steps; a step of length 0 has variance 0, whose logarithm is kept finite
    log_renewed = jnp.log(jnp.maximum(transition_coefs(logsnr_t, logsnr_s)[1], 1e-7))
    return jax.nn.log_sigmoid(-logsnr_s) + log_renewed, jax.nn.log_sigmoid(-logsnr_t) + log_renewed


def learned_log_variance(v: jax.Array, lower: jax.Array, upper: jax.Array) -> jax.Array:
    """Returns the log-variance [B, ...]: `lower` [B] at v = -1, `upper` [B] at v = 1 (arXiv:2102.09672, Eq. 15)."""
    fraction = (v.astype(jnp.float32) + 1) / 2
    return fraction * append_dims(upper, v) + (1 - fraction) * append_dims(lower, v)


def posterior_mean(x: jax.Array, z: jax.Array, logsnr_t: jax.Array, logsnr_s: jax.Array) -> jax.Array:
    """Returns the mean [B, ...] of q(z_s | z_t, x) (arXiv:2205.11487, Eq. 3).

    Args:
        x: images, or a network's estimate of them, [B, ...].
        z: z_t, [B, ...].
        logsnr_t: logsnr at t, [B] or scalar.
        logsnr_s: logsnr at s < t, [B] or scalar.
    """
    snr_ratio, renewed = transition_coefs(logsnr_t, logsnr_s)
    alpha_t, alpha_s = alpha_from_logsnr(logsnr_t), alpha_from_logsnr(logsnr_s)
    return append_dims(snr_ratio * (alpha_s / alpha_t), z) * z + append_dims(renewed * alpha_s, x) * x


def mse_per_example(prediction: jax.Array, target: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Returns the mean squared error of each example, [B], over all other axes of [B, ...], in float32.

    Args:
        prediction: [B, ...].
        target: of its shape.
        mask: broadcasts to that shape: 1 where an error counts, anywhere in each example, and 0 where not; None for
            everywhere.
    """
    error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    axes = tuple(range(1, error.ndim))
    if mask is None:
        return jnp.mean(error**2, axis=axes)
    counted = jnp.broadcast_to(mask.astype(jnp.float32), error.shape)
    return jnp.sum(counted * error**2, axis=axes) / jnp.sum(counted, axis=axes)


def loss_weight(
    logsnr: jax.Array,
    prediction_type: PredictionType,
    weighting: LossWeighting,
    *,
    bias: float,
    min_snr_gamma: float,
    sigma_data: float,
) -> jax.Array:
    """Returns the weight [B] of the squared error of predictions at noise levels.

    "simple" is 1 for every prediction type. The others are given here as weights of the error in eps, and are converted
    so that the weighted loss is the same for x and v:

        "sigmoid"  sigmoid(bias - logsnr)        (arXiv:2303.00848, Section 5); a larger bias favors low noise;
        "min_snr"  min(1, min_snr_gamma / SNR)   (arXiv:2303.09556, Section 3.4); min(SNR, γ) for the error in x;
        "edm"      1 + 1 / (SNR · sigma_data²)   (arXiv:2206.00364, Table 1; with SNR = 1 / σ²).

    Args:
        logsnr: [B], within the range of schedules: "edm" grows as 1 / SNR.
        prediction_type: what the network predicts.
        weighting: one of `LOSS_WEIGHTINGS`, see above.
        bias: for "sigmoid".
        min_snr_gamma: γ for "min_snr", above 0.
        sigma_data: standard deviation of the images, for "edm", above 0.

    Raises:
        ValueError: an unknown weighting.
    """
    # in log space, where ratios of SNR do not overflow
    match weighting:
        case "simple":
            return jnp.ones_like(logsnr)
        case "sigmoid":
            log_weight_eps = jax.nn.log_sigmoid(bias - logsnr)
        case "min_snr":
            log_weight_eps = jnp.minimum(math.log(min_snr_gamma) - logsnr, 0.0)
        case "edm":
            log_weight_eps = jax.nn.softplus(-logsnr - 2 * math.log(sigma_data))
        case _:
            raise ValueError(f"weighting {weighting!r} is not one of {LOSS_WEIGHTINGS}")
    # squared errors of one network: error in eps = SNR · error in x; error in v = (1 + SNR) · error in x
    log_conversion = {"eps": jnp.zeros_like(logsnr), "x": logsnr, "v": jax.nn.log_sigmoid(logsnr)}[prediction_type]
    return jnp.exp(log_weight_eps + log_conversion)


def sample_timesteps(key: jax.Array, batch_size: int) -> jax.Array:
    """Returns times [B], each U(0, 1) marginally, one in each of B equal bins (antithetic; arXiv:2107.00630, App. I.1).

    Stratifying over the batch lowers the variance of the loss.
    """
    offset = jax.random.uniform(key)
    return (offset + jnp.arange(batch_size) / batch_size) % 1.0
