"""Optimizers from their config: Adafactor for the base, Adam for super-resolution (arXiv:2205.11487, App. F)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from imagen_jax.config.fields import DTYPES
from imagen_jax.config.schema import OptimizerConfig
from imagen_jax.parallel.scan_params import is_stacked
from imagen_jax.parallel.sharding import key_path
from imagen_jax.training.skip_updates import skip_bad_updates


def learning_rate_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Returns the learning rate: linear warm-up over `warmup_steps`, then cosine decay to 0 at `decay_steps`."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=config.decay_steps,
    )


def muon_dimensions(params: Any) -> Any:
    """Returns how Muon sees parameters as matrices: kernels, last axis against the others. Adam updates the rest.

    Each layer of a stack is a matrix of its own.
    """

    def described(path: Any, leaf: Any) -> Any:
        first, last = int(is_stacked(key_path(path))), leaf.ndim - 1
        if leaf.ndim - first not in (2, 4):
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(first, last)), last)

    return jax.tree_util.tree_map_with_path(described, params)


def clip_by_layer_rms(threshold: float) -> optax.GradientTransformation:
    """Returns a transformation that clips the root mean square of each parameter's update to `threshold`.

    Layers of a stack are clipped one by one; `optax.clip_by_block_rms` would measure them together.
    """

    def clip(update: jax.Array) -> jax.Array:
        return update / jnp.maximum(1.0, jnp.sqrt(jnp.mean(jnp.square(update))) / threshold)

    def clipped(path: Any, update: jax.Array) -> jax.Array:
        return jax.vmap(clip)(update) if is_stacked(key_path(path)) else clip(update)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(clipped, updates))


def _adafactor(rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """Returns Adafactor (arXiv:1804.04235) without a first moment.

    Updates are not scaled by the size of parameters: outputs that start at zero would hardly move.
    """
    return optax.chain(
        # factors the two largest axes if both have at least 128 entries: an axis of layers never has
        optax.scale_by_factored_rms(),
        clip_by_layer_rms(1.0),
        optax.scale_by_learning_rate(rate, flip_sign=False),
        *([optax.add_decayed_weights(weight_decay)] if weight_decay else []),
        optax.scale(-1),
    )


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """Returns the config's optimizer, after clipping by global norm; bad updates are skipped."""
    rate = learning_rate_schedule(config)
    # bfloat16 halves the memory of the running mean of gradients
    moment = DTYPES[config.first_moment_dtype]
    match config.name:
        case "adam":
            update = optax.adamw(
                rate,
                b1=config.b1,
                b2=config.b2,
                eps=config.eps,
                mu_dtype=moment,
                weight_decay=config.weight_decay,
            )
        case "adafactor":
            update = _adafactor(rate, config.weight_decay)
        case _:  # muon
            update = optax.contrib.muon(
                rate,
                beta=config.b1,
                adam_b1=config.b1,
                adam_b2=config.b2,
                mu_dtype=moment,
                weight_decay=config.weight_decay,
                # updates of Adam's size, so that learning rates mean the same (arXiv:2502.16982, Eq. 4)
                consistent_rms=0.2,
                muon_weight_dimension_numbers=muon_dimensions,
            )
    return skip_bad_updates(optax.chain(optax.clip_by_global_norm(config.clip_norm), update), config.spike_factor)
