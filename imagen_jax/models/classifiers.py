"""What classifiers share that are there to measure images: their output, and batch norms with stored statistics."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

_NORM_EPSILON = 1e-3  # of TensorFlow's networks


class ClassifierOutput(NamedTuple):
    """The output of a classifier.

    Attributes:
        features: float32 [B, D], the means over the pixels of the last block.
        logits: float32 [B, K], by class.
    """

    features: jax.Array
    logits: jax.Array


class BatchNorm(nn.Module):
    """Normalization of [..., C] by stored statistics, in float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.param("mean", nn.initializers.zeros, shape)
        var = self.param("var", nn.initializers.ones, shape)
        # factors of a channel are multiplied before images are
        factor = scale.astype(jnp.float32) * jax.lax.rsqrt(var.astype(jnp.float32) + _NORM_EPSILON)
        return x.astype(jnp.float32) * factor + (bias.astype(jnp.float32) - mean.astype(jnp.float32) * factor)
