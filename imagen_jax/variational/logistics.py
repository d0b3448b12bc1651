"""The discretized mixture of logistics as a likelihood of images (arXiv:1701.05517, Section 2.1 and 2.2).

Each pixel has one mixture; the mean of a channel depends linearly on the channels before it. Images are [B, H, W, C]
with integer values scaled to [-1, 1], `levels` of them; parameters are [B, H, W, `num_parameters`].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

# scales of a component stay above half a bin times exp(-1.5), where its mass is in one bin
_SCALE_MARGIN = 1.5
# and below exp(5), where all values of [-1, 1] are equally likely
_LARGEST_LOG_SCALE = 5.0


class Mixture(NamedTuple):
    """The mixtures of pixels, float32, with K components.

    Attributes:
        log_weights: [..., K], normalized.
        means: [..., C, K], before earlier channels are added.
        log_scales: [..., C, K].
        slopes: [..., C, C, K] in (-1, 1): how the mean of a channel depends on another one; 0 but for earlier ones.
    """

    log_weights: jax.Array
    means: jax.Array
    log_scales: jax.Array
    slopes: jax.Array


def num_parameters(channels: int, components: int) -> int:
    """Returns how many numbers describe the mixture of a pixel."""
    return components * (1 + 2 * channels + channels * (channels - 1) // 2)


def half_bin(levels: int) -> float:
    """Returns half the distance between two values of images with so many levels in [-1, 1]."""
    return 1 / (levels - 1)


def read_mixture(parameters: jax.Array, channels: int, levels: int = 256) -> Mixture:
    """Returns the mixtures of parameters [..., `num_parameters`], in float32 whatever their type.

    Raises:
        ValueError: the number of parameters fits no number of components.
    """
    per_component = num_parameters(channels, 1)
    if parameters.shape[-1] % per_component:
        raise ValueError(f"{parameters.shape[-1]} parameters are not a multiple of {per_component}")
    # float32: log-scales of bf16 would move the edges of bins
    values = parameters.astype(jnp.float32).reshape(*parameters.shape[:-1], per_component, -1)
    logits, means, log_scales, slopes = jnp.split(values, [1, 1 + channels, 1 + 2 * channels], axis=-2)
    lowest = math.log(half_bin(levels)) - _SCALE_MARGIN
    rows, columns = jnp.tril_indices(channels, -1)
    shape = (*values.shape[:-2], channels, channels, values.shape[-1])
    return Mixture(
        jax.nn.log_softmax(logits[..., 0, :], axis=-1),
        means,
        _soft_clip(log_scales, lowest, _LARGEST_LOG_SCALE),
        jnp.zeros(shape).at[..., rows, columns, :].set(jnp.tanh(slopes)),
    )


def _soft_clip(values: jax.Array, low: float, high: float) -> jax.Array:
    """Returns values within bounds, with gradients everywhere."""
    return jnp.minimum(low + jax.nn.softplus(high - jax.nn.softplus(high - values) - low), high)


def log_likelihood(x: jax.Array, mixture: Mixture, levels: int = 256) -> jax.Array:
    """Returns the log-probability of each pixel [...], in nats: over all values of all channels it sums to 1.

    Args:
        x: images [..., C] of integer values scaled to [-1, 1].
        mixture: of each pixel.
        levels: number of values of a channel.
    """
    half = half_bin(levels)
    x = x.astype(jnp.float32)
    means = mixture.means + jnp.einsum("...cjk,...j->...ck", mixture.slopes, x)
    inverse = jnp.exp(-mixture.log_scales)
    value = x[..., None]
    below, above = (value - half - means) * inverse, (value + half - means) * inverse
    # σ(above) - σ(below) = σ(above) σ(-below) (1 - exp(below - above)): no difference of nearly equal numbers
    lower, upper = jax.nn.log_sigmoid(above), jax.nn.log_sigmoid(-below)
    inside = lower + upper + jnp.log(-jnp.expm1(-2 * half * inverse))
    # the first and the last bin extend to infinity
    by_channel = jnp.where(value < -1 + half, lower, jnp.where(value > 1 - half, upper, inside))
    return jax.nn.logsumexp(mixture.log_weights + by_channel.sum(axis=-2), axis=-1)


def mean(mixture: Mixture) -> jax.Array:
    """Returns the mean [..., C] of the mixtures before they are discretized, in [-1, 1]."""
    means: list[jax.Array] = []
    for channel in range(mixture.means.shape[-2]):
        value = mixture.means[..., channel, :]
        for earlier, other in enumerate(means):
            value += mixture.slopes[..., channel, earlier, :] * other
        means.append(value)
    weights = jnp.exp(mixture.log_weights)[..., None, :]
    return jnp.clip(jnp.sum(weights * jnp.stack(means, axis=-2), axis=-1), -1.0, 1.0)


def sample(keys: jax.Array, mixture: Mixture, levels: int = 256) -> jax.Array:
    """Returns images [B, ..., C] from mixtures [B, ..., K], at the values that have a likelihood.

    Args:
        keys: one for each image [B]; its image depends on it alone.
        mixture: of each pixel.
        levels: number of values of a channel.
    """
    return jax.vmap(lambda key, one: _sample_image(key, one, levels))(keys, mixture)


def _sample_image(key: jax.Array, mixture: Mixture, levels: int) -> jax.Array:
    choice_key, value_key = jax.random.split(key)
    component = jax.random.categorical(choice_key, mixture.log_weights)
    one_hot = jax.nn.one_hot(component, mixture.log_weights.shape[-1])
    means, log_scales = (jnp.einsum("...ck,...k->...c", part, one_hot) for part in mixture[1:3])
    slopes = jnp.einsum("...cjk,...k->...cj", mixture.slopes, one_hot)
    noise = jax.random.logistic(value_key, means.shape)
    values: list[jax.Array] = []
    for channel in range(means.shape[-1]):
        value = means[..., channel] + jnp.exp(log_scales[..., channel]) * noise[..., channel]
        for earlier, other in enumerate(values):
            value += slopes[..., channel, earlier] * other
        half = half_bin(levels)
        values.append(jnp.clip(jnp.round((value + 1) / (2 * half)) * 2 * half - 1, -1.0, 1.0))
    return jnp.stack(values, axis=-1)
