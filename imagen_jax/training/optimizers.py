"""Optimizers of the paper, from their config: Adafactor for the base, Adam for super-resolution (App. F)."""

from __future__ import annotations

from typing import Any

import jax
import ml_collections
import optax
import optax.contrib

from imagen_jax.config_rules import DTYPES
from imagen_jax.errors import UsageError


def learning_rate(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Linear warm-up to ``learning_rate`` over ``warmup_steps``, then a cosine down to 0 at ``decay_steps``."""
    if not 0 <= config.warmup_steps < config.decay_steps:
        raise UsageError(
            f"config.optimizer.warmup_steps {config.warmup_steps} is not in [0, {config.decay_steps}): "
            "it must end before optimizer.decay_steps"
        )
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=config.decay_steps,
    )


def matrices(params: Any) -> Any:
    """Which parameters Muon sees as matrices: kernels, their last axis against the rest. Adam has the others."""

    def described(leaf: Any) -> Any:
        if leaf.ndim not in (2, 4):
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree.map(described, params)


def first_moment_dtype(config: ml_collections.ConfigDict) -> Any:
    """Of the running mean of gradients: bfloat16 halves its memory. Raises UsageError where there is none to halve."""
    name = config.first_moment_dtype
    if name not in DTYPES:
        raise UsageError(f"optimizer.first_moment_dtype {name!r} is not known: choose one of {', '.join(DTYPES)}")
    if config.name == "adafactor" and name != "float32":
        raise UsageError(
            f"optimizer.first_moment_dtype {name!r} is of no use to optimizer.name 'adafactor', which has no first "
            "moment: leave it 'float32', or choose adam or muon"
        )
    return DTYPES[name]


def make_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Clipping by global norm, then the named optimizer. Raises UsageError for an unknown one."""
    rate = learning_rate(config)
    moment = first_moment_dtype(config)
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
            # multiply_by_parameter_scale off: zero-initialised outputs would hardly move from zero
            update = optax.adafactor(
                rate, multiply_by_parameter_scale=False, weight_decay_rate=config.weight_decay or None
            )
        case "muon":
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
        case _:
            raise UsageError(f"optimizer.name {config.name!r} is not known: choose adam, adafactor or muon")
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)
