"""Optimizers: Adafactor for base stages, Adam for super-resolution (arXiv:2205.11487, Appendix F), and Muon."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from imagen_jax.config.fields import DTYPES
from imagen_jax.config.schema import OptimizerConfig
from imagen_jax.parallel.scan_params import is_stacked
from imagen_jax.parallel.sharding import key_path
from imagen_jax.stages.trainable import check_patterns, param_paths
from imagen_jax.training.skip_updates import skip_bad_updates


def decay_end(config: OptimizerConfig, steps: int) -> int:
    """Returns the step at which the learning rate ends its decay in a run of `steps` steps."""
    return config.decay_steps or steps


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate after a number of applied updates.

    It rises linearly over `warmup_steps`, then falls as a cosine to `end_learning_rate` at `decay_steps`. Without
    `decay_steps` it falls until the end of the run; a run that is not longer than the warm-up only warms up.

    Args:
        config: the optimizer.
        steps: the length of the run, `training.steps`.
    """
    end = decay_end(config, steps)
    if config.warmup_steps >= end:
        return optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=end,
        end_value=config.end_learning_rate,
    )


def _muon_dimensions(params: Any) -> Any:
    """Returns the axes by which Muon views each kernel as a matrix: the last against the others. Adam updates the rest.

    Each layer of a stack of scanned layers is a matrix of its own.
    """

    def dimensions(path: Any, leaf: Any) -> Any:
        first, last = int(is_stacked(key_path(path))), leaf.ndim - 1
        if leaf.ndim - first not in (2, 4):
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(first, last)), last)

    return jax.tree_util.tree_map_with_path(dimensions, params)


def _clip_by_layer_rms(threshold: float) -> optax.GradientTransformation:
    """Returns a transformation that clips the root mean square of each parameter's update to `threshold`.

    Scanned layers are clipped one by one; `optax.clip_by_block_rms` would clip them together.
    """

    def clip(update: jax.Array) -> jax.Array:
        return update / jnp.maximum(1.0, jnp.sqrt(jnp.mean(jnp.square(update))) / threshold)

    def clipped(path: Any, update: jax.Array) -> jax.Array:
        return jax.vmap(clip)(update) if is_stacked(key_path(path)) else clip(update)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(clipped, updates))


def _scale_by_factors(factors: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    """Returns a transformation that multiplies updates, and so learning rates, by the factors of parameters' paths.

    Raises ConfigError for a pattern that matches none, when the state is initialized.
    """

    def init(params: Any) -> optax.EmptyState:
        paths, patterns = param_paths(params), [pattern for pattern, _ in factors]
        check_patterns("optimizer.rate_factors", patterns, paths, f"the {len(paths)} parameters that are trained")
        return optax.EmptyState()

    def factor(path: str) -> float:
        return next((factor for pattern, factor in factors if re.search(pattern, path)), 1.0)

    def scale(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        scaled = jax.tree_util.tree_map_with_path(lambda path, update: factor(key_path(path)) * update, updates)
        return scaled, state

    return optax.GradientTransformation(init, scale)


def _adafactor(rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """Returns Adafactor (arXiv:1804.04235) without a first moment.

    Updates are not scaled by the norm of the parameters, because zero-initialized outputs would hardly move.
    """
    return optax.chain(
        # factors the two largest axes if both have at least 128 entries, which the axis of scanned layers never has
        optax.scale_by_factored_rms(),
        _clip_by_layer_rms(1.0),
        optax.scale_by_learning_rate(rate, flip_sign=False),
        *([optax.add_decayed_weights(weight_decay)] if weight_decay else []),
        optax.scale(-1),
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of a config, with clipping by global norm; it skips bad updates (`skip_bad_updates`).

    Args:
        config: the optimizer.
        steps: the length of the run, `training.steps`.
    """
    rate = learning_rate_schedule(config, steps)
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
        case _:  # muon, arXiv:2502.16982
            update = optax.contrib.muon(
                rate,
                beta=config.b1,
                adam_b1=config.b1,
                adam_b2=config.b2,
                mu_dtype=moment,
                weight_decay=config.weight_decay,
                # scales updates to the RMS of Adam's, so that the same learning rates fit (Eq. 4)
                consistent_rms=0.2,
                muon_weight_dimension_numbers=_muon_dimensions,
            )
    # without factors, the state has the structure that it had before there were any
    factors = [_scale_by_factors(config.rate_factors)] if config.rate_factors else []
    return skip_bad_updates(
        optax.chain(optax.clip_by_global_norm(config.clip_norm), update, *factors),
        config.spike_factor,
        config.skip_norm,
    )
