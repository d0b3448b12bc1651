"""The training state, and how it is initialized on a mesh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import AbstractMesh, Mesh

from imagen_jax.diffusion.keys import key_from_seed
from imagen_jax.parallel.sharding import ShardingRules, with_shardings
from imagen_jax.stages.trainable import param_paths, select, split

InitFn = Callable[[jax.Array], Any]


@struct.dataclass
class TrainState:
    """Everything that a step changes; the field names are part of the checkpoint format.

    Attributes:
        step: number of finished steps, int32.
        params: parameters of the network that are trained.
        opt_state: state of the optimizer.
        ema_params: exponential moving average of the parameters, which never overwrites them.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema_params: Any


class Frozen(NamedTuple):
    """What a step reads and does not change.

    Attributes:
        networks: parameters of other networks that the loss needs, such as the text encoder's.
        params: parameters of the network that are not trained; together with a state's they are all.
    """

    networks: Any
    params: Any = {}


def abstract_parts(
    init: InitFn,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | AbstractMesh,
    rules: ShardingRules = (),
    trainable: Sequence[str] = (),
) -> tuple[TrainState, Any]:
    """Returns what changes in training and what does not, as `jax.ShapeDtypeStruct` with shardings.

    Args:
        init: returns all parameters for a key.
        optimizer: the optimizer, which initializes its state from the parameters that are trained.
        mesh: the devices.
        rules: as in `sharding.param_shardings`; moments and EMA are sharded like their parameters.
        trainable: as in `trainable.split`.

    Returns:
        (state, frozen): the state and the frozen parameters.

    Raises:
        ConfigError: a rule or a pattern matches no parameter, or a rule does not fit one.
    """
    everything = with_shardings(jax.eval_shape(init, jax.random.key(0)), mesh, rules)
    params, frozen = split(everything, trainable)
    shapes = jax.eval_shape(lambda params: _first_state(optimizer, params), params)
    return with_shardings(shapes, mesh, rules, everything), frozen


def abstract_state(
    init: InitFn,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh | AbstractMesh,
    rules: ShardingRules = (),
) -> tuple[TrainState, Callable[[], TrainState]]:
    """Returns the abstract state in which all parameters are trained, and a function that initializes it.

    Args:
        init: returns the parameters for a key.
        optimizer: the optimizer.
        seed: seed of the parameters.
        mesh: devices of the state. An abstract mesh has none: then the returned function cannot be called.
        rules: as in `sharding.param_shardings`.
    """
    abstract, _ = abstract_parts(init, optimizer, mesh, rules)
    return abstract, lambda: first_state(optimizer, abstract, init_params(init, seed, abstract.params))


def init_params(init: InitFn, seed: int, abstract: Any) -> Any:
    """Returns random initial values of parameters; nothing is ever unsharded.

    Args:
        init: returns all parameters for a key.
        seed: seed of the parameters.
        abstract: the parameters to initialize, perhaps a part of all, with their shardings.
    """
    if not abstract:
        return {}
    paths = set(param_paths(abstract))
    return _jit(lambda: select(init(key_from_seed(seed)), paths), abstract)()


def first_state(optimizer: optax.GradientTransformation, abstract: TrainState, params: Any) -> TrainState:
    """Returns the state before the first step, with an EMA that equals the parameters, which are donated."""
    return _jit(lambda params: _first_state(optimizer, params), abstract, donate_argnums=0)(params)


def _first_state(optimizer: optax.GradientTransformation, params: Any) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params),
    )


def _jit(function: Callable[..., Any], abstract: Any, **options: Any) -> Callable[..., Any]:
    """Returns a jitted function that runs once, whose results have the shardings of an abstract pytree."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    mesh = jax.tree.leaves(shardings)[0].mesh
    on_cpu = isinstance(mesh, Mesh) and mesh.devices.flat[0].platform == "cpu"
    # on a CPU, XLA takes many times longer to optimize this program than to run it once
    compiler_options = {"xla_backend_optimization_level": 0} if on_cpu else None
    return jax.jit(function, out_shardings=shardings, compiler_options=compiler_options, **options)


def update_ema(
    ema: Any,
    params: Any,
    step: jax.Array,
    decay: float,
    applied: jax.Array | bool = True,
    *,
    continued: bool = False,
) -> Any:
    """Returns d · ema + (1 - d) · params with d = min(decay, (1 + step) / (10 + step)), a short memory in early steps.

    Args:
        ema: the EMA parameters so far.
        params: the parameters after the step.
        step: number of finished steps before this one.
        decay: the largest d, `optimizer.ema_decay`.
        applied: whether the step's update was applied; if not, the EMA stays.
        continued: whether the EMA is that of an earlier run, whose memory is long from the first step: d = decay.
    """
    early = decay if continued else (1.0 + step) / (10.0 + step)
    # d = 1 instead of a jnp.where for every array
    d = jnp.where(applied, jnp.minimum(decay, early), 1.0)
    return jax.tree.map(lambda e, p: e + (1.0 - d) * (p - e), ema, params)
