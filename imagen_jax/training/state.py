"""The training state, and how it is initialized on a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import AbstractMesh, Mesh

from imagen_jax.parallel.sharding import ShardingRules, with_shardings


@struct.dataclass
class TrainState:
    """Everything that a step changes; the EMA never overwrites the raw parameters."""

    step: jax.Array
    params: Any
    opt_state: Any
    ema_params: Any


def abstract_state(
    init: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh | AbstractMesh,
    rules: ShardingRules = (),
) -> tuple[TrainState, Callable[[], TrainState]]:
    """Returns the abstract state with its shardings, and a function that initializes it; nothing is ever unsharded.

    Args:
        init: makes the parameters from a key.
        optimizer: makes the optimizer state.
        seed: of the parameters.
        mesh: where the state goes; of an abstract mesh, which has no devices, only the shapes are of use.
        rules: see `sharding.shard_parameters`; moments and EMA are sharded like their parameters.
    """

    def make() -> TrainState:
        params = init(jax.random.key(seed))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            ema_params=jax.tree.map(jnp.copy, params),
        )

    shapes = jax.eval_shape(make)
    abstract = with_shardings(shapes, mesh, rules, shapes.params)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    on_cpu = isinstance(mesh, Mesh) and mesh.devices.flat[0].platform == "cpu"
    # On a CPU, optimizing this program of random numbers takes many times longer than its only call.
    options = {"xla_backend_optimization_level": 0} if on_cpu else None
    return abstract, jax.jit(make, out_shardings=shardings, compiler_options=options)


def update_ema(ema: Any, params: Any, step: jax.Array, decay: float, applied: jax.Array | bool = True) -> Any:
    """Returns d · ema + (1 - d) · params, d = min(decay, (1 + step) / (10 + step)): a short memory in early steps.

    Where the update was not applied, d is 1: one number is selected, not every array.
    """
    d = jnp.where(applied, jnp.minimum(decay, (1.0 + step) / (10.0 + step)), 1.0)
    return jax.tree.map(lambda e, p: e + (1.0 - d) * (p - e), ema, params)
