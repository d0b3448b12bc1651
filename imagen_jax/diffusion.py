"""The diffusion process: noising, the three kinds of prediction, and the loss of each example.

    z_t = alpha_t * x + sigma_t * eps            (arXiv:2205.11487, Section 2.1)

Alpha and sigma are given per example, [B] or scalar, and are broadcast over the axes of x.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp

Prediction = Literal["eps", "x", "v"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)
Weight = Literal["simple", "sigmoid"]
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


def squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """The loss of each example, [B]: the mean of squares over all other axes, in float32."""
    error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    return jnp.mean(error**2, axis=tuple(range(1, error.ndim)))


def loss_weight(logsnr: jax.Array, prediction: Prediction, kind: Weight, bias: float) -> jax.Array:
    """What the squared error of a prediction counts at noise levels [B], [B].

    "simple" is 1 whatever is predicted. "sigmoid" is sigmoid(bias - logsnr) for errors of eps (arXiv:2303.00848,
    Section 5), and what comes to the same for errors of x and v. A larger bias gives more to little noise.
    """
    match kind:
        case "simple":
            return jnp.ones_like(logsnr)
        case "sigmoid":
            # squared errors of one network: eps = SNR · x, v = (1 + SNR) · x
            per_eps = {"eps": jnp.zeros_like(logsnr), "x": logsnr, "v": jax.nn.log_sigmoid(logsnr)}[prediction]
            return jnp.exp(jax.nn.log_sigmoid(bias - logsnr) + per_eps)
    raise ValueError(f"weight {kind!r} is not one of {WEIGHTS}")


def stratified_times(key: jax.Array, batch: int) -> jax.Array:
    """Times [B], each U(0, 1) by itself, but one in each B-th of [0, 1]: less variance (arXiv:2107.00630, App. I.1)."""
    offset = jax.random.uniform(key)
    return (offset + jnp.arange(batch) / batch) % 1.0
