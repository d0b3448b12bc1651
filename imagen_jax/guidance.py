"""Classifier-free guidance, and the thresholding that high weights need (arXiv:2205.11487, Sections 2.2 and 2.3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from imagen_jax.diffusion import per_example
from imagen_jax.errors import UsageError


def classifier_free(conditional: jax.Array, unconditional: jax.Array, weight: jax.Array | float) -> jax.Array:
    """w · conditional + (1 - w) · unconditional, Eq. 2; weight 1 is no guidance.

    The three kinds of prediction are affine in one another at a given z_t, so the sum means the same in each.
    """
    return unconditional + weight * (conditional - unconditional)


def static_threshold(x: jax.Array) -> jax.Array:
    """x clipped to the range of images, [-1, 1]."""
    return jnp.clip(x, -1.0, 1.0)


def dynamic_threshold(x: jax.Array, percentile: float = 99.5) -> jax.Array:
    """x clipped to [-s, s] and divided by s, where s ≥ 1 is the percentile (in per cent) of |x| in each sample."""
    s = jnp.percentile(jnp.abs(x), percentile, axis=tuple(range(1, x.ndim)))
    s = per_example(jnp.maximum(s, 1.0), x)
    return jnp.clip(x, -s, s) / s


def threshold(kind: str, percentile: float) -> Callable[[jax.Array], jax.Array]:
    """The function x_hat → x_hat of that name: ``none``, ``static`` or ``dynamic``. Raises UsageError for another."""
    match kind:
        case "none":
            return lambda x: x
        case "static":
            return static_threshold
        case "dynamic":
            if not 0 < percentile <= 100:
                raise UsageError(f"percentile {percentile} is not in (0, 100]: 99.5 means 99.5 per cent")
            return partial(dynamic_threshold, percentile=percentile)
    raise UsageError(f"threshold {kind!r} is not known: choose none, static or dynamic")
