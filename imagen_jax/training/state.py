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
    """Everything that a step changes; the field names are part of the checkpoint format.

    Attributes:
        step: number of finished steps, int32.
        params: parameters of the network.
        opt_state: state of the optimizer.
        ema_params: exponential moving average of the parameters, which never overwrites them.
    """

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
        init: returns the parameters for a key.
        optimizer: the optimizer, which initializes its state from the parameters.
        seed: seed of the parameters.
        mesh: devices of the state. An abstract mesh has none: then the returned function cannot be called.
        rules: as in `sharding.param_shardings`; moments and EMA are sharded like their parameters.

    Returns:
        (abstract, init_state): a TrainState of `jax.ShapeDtypeStruct` with shardings, and a jitted function.
    """

    def init_state() -> TrainState:
        params = init(jax.random.key(seed))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            ema_params=jax.tree.map(jnp.copy, params),
        )

    shapes = jax.eval_shape(init_state)
    abstract = with_shardings(shapes, mesh, rules, shapes.params)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    on_cpu = isinstance(mesh, Mesh) and mesh.devices.flat[0].platform == "cpu"
    # on a CPU, XLA takes many times longer to optimize this program than to run it once
    options = {"xla_backend_optimization_level": 0} if on_cpu else None
    return abstract, jax.jit(init_state, out_shardings=shardings, compiler_options=options)


def update_ema(ema: Any, params: Any, step: jax.Array, decay: float, applied: jax.Array | bool = True) -> Any:
    """Returns d · ema + (1 - d) · params with d = min(decay, (1 + step) / (10 + step)), a short memory in early steps.

    Args:
        ema: the EMA parameters so far.
        params: the parameters after the step.
        step: number of finished steps before this one.
        decay: the largest d, `optimizer.ema_decay`.
        applied: whether the step's update was applied; if not, the EMA stays.
    """
    # d = 1 instead of a jnp.where for every array
    d = jnp.where(applied, jnp.minimum(decay, (1.0 + step) / (10.0 + step)), 1.0)
    return jax.tree.map(lambda e, p: e + (1.0 - d) * (p - e), ema, params)
