"""What `adapter` makes of a run: parameters beside the network's, which are trained in its place.

`lora` has factors beside kernels (`lora.py`), and a token has rows in the text encoder's token table (textual
inversion, arXiv:2208.01618). Either is a change of parameters alone: the network never sees them.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.config.schema import StageConfig
from imagen_jax.parallel import multihost
from imagen_jax.stages.codec import CODEC, TRAINED
from imagen_jax.stages.lora import LORA_A, LORA_B, fold_lora, init_lora
from imagen_jax.stages.trainable import Tree, merge, param_paths, select
from imagen_jax.stages.weights import text_width

LEARNED, ROWS = "learned_token", "rows"  # the rows [N, D] of `adapter.token`, below its own name in the tree
# what a run trains, as `training.trainable`
_FACTORS, _ROWS = f"/({LORA_A}|{LORA_B})$", f"^{LEARNED}/{ROWS}$"
_ENDS = (f"/{LORA_A}", f"/{LORA_B}")


def trained_patterns(config: StageConfig) -> Sequence[str]:
    """Returns the patterns of the parameters that a config's run trains, as of `trainable.split`.

    The parameters of a codec are never among them.
    """
    patterns = network_patterns(config)
    if not config.codec.has_latents:
        return patterns
    return tuple(f"{TRAINED}.*(?:{pattern})" for pattern in patterns) or (TRAINED,)


def network_patterns(config: StageConfig) -> Sequence[str]:
    """Returns those of `trained_patterns` for a network and its adapter, without a codec beside them."""
    adapter = config.adapter
    parts = {_FACTORS: adapter.kind == "lora", _ROWS: bool(adapter.token)}
    return tuple(pattern for pattern, has in parts.items() if has) or config.training.trainable


def with_adapter(config: StageConfig, params: Tree, key: jax.Array) -> Tree:
    """Returns parameters of a config's network, with a new adapter beside them if the config has one.

    The rows of a token are 0: whoever knows the text encoder replaces them.
    """
    adapter, result = config.adapter, params
    if adapter.kind == "lora":
        result = merge(result, init_lora(params, adapter, key))
    if adapter.token:
        result = {**result, LEARNED: {ROWS: jnp.zeros((adapter.vectors, text_width(params)))}}
    return result


def network_params(config: StageConfig, params: Tree) -> Tree:
    """Returns the parameters that a config's network takes: without those of a codec and of an adapter."""
    if config.codec.has_latents:
        params = {name: value for name, value in params.items() if name != CODEC}
    return fold_adapter(config, params)


def fold_adapter(config: StageConfig, params: Tree) -> Tree:
    """Returns parameters without an adapter; kernels have LoRA's products added."""
    if config.adapter.token:
        params = {name: value for name, value in params.items() if name != LEARNED}
    return fold_lora(params, config.adapter.scale) if config.adapter.kind == "lora" else params


def is_adapter(path: str) -> bool:
    """Returns whether the parameter at a path is one of an adapter."""
    return path.endswith(_ENDS) or path == f"{LEARNED}/{ROWS}"


def learned_rows(params: Tree) -> np.ndarray:
    """Returns the rows of a run's token, float32 [N, D], on the host."""
    return multihost.all_gather(params[LEARNED][ROWS]).astype(np.float32)


def split_adapter(params: Tree) -> tuple[Tree, Tree]:
    """Returns the adapter in a tree of parameters, and the parameters without it."""
    paths = set(param_paths(params))
    adapter = {path for path in paths if is_adapter(path)}
    return select(params, adapter), select(params, paths - adapter)
