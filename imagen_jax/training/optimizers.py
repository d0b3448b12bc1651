"""Optimizers of the paper, from their config: Adafactor for the base, Adam for super-resolution (App. F)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from imagen_jax.config.schema import DTYPES, OptimizerConfig
from imagen_jax.parallel.scan_params import is_stacked
from imagen_jax.parallel.sharding import path_of
from imagen_jax.training.skip_updates import skip_bad_updates


def learning_rate(config: OptimizerConfig) -> optax.Schedule:
    """Linear warm-up to ``learning_rate`` over ``warmup_steps``, then a cosine down to 0 at ``decay_steps``."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=config.decay_steps,
    )


def matrices(params: Any) -> Any:
    """Which parameters Muon sees as matrices: kernels, their last axis against the rest. Adam has the others.

    Of a stack each layer has a matrix of its own.
    """

    def described(path: Any, leaf: Any) -> Any:
        first, last = int(is_stacked(path_of(path))), leaf.ndim - 1
        if leaf.ndim - first not in (2, 4):
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(first, last)), last)

    return jax.tree_util.tree_map_with_path(described, params)


def clip_by_layer_rms(threshold: float) -> optax.GradientTransformation:
    """Shrinks the update of a parameter to a root mean square of at most ``threshold``, of a stack that of each layer.

    ``optax.clip_by_block_rms`` would measure all layers of a stack together.
    """

    def clip(update: jax.Array) -> jax.Array:
        return update / jnp.maximum(1.0, jnp.sqrt(jnp.mean(jnp.square(update))) / threshold)

    def clipped(path: Any, update: jax.Array) -> jax.Array:
        return jax.vmap(clip)(update) if is_stacked(path_of(path)) else clip(update)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(clipped, updates))


def adafactor(rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """Adafactor (arXiv:1804.04235) without a first moment.

    Without the scaling by a parameter's size too: outputs that start at zero would hardly move from there.
    """
    return optax.chain(
        # it factors the two largest axes, if both are of 128 at least: no axis of layers is
        optax.scale_by_factored_rms(),
        clip_by_layer_rms(1.0),
        optax.scale_by_learning_rate(rate, flip_sign=False),
        *([optax.add_decayed_weights(weight_decay)] if weight_decay else []),
        optax.scale(-1),
    )


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """Clipping by global norm, then the named optimizer, guarded."""
    rate = learning_rate(config)
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
            update = adafactor(rate, config.weight_decay)
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
                muon_weight_dimension_numbers=matrices,
            )
    return skip_bad_updates(optax.chain(optax.clip_by_global_norm(config.clip_norm), update), config.spike_factor)
