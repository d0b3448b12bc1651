"""Low-rank adapters (LoRA, arXiv:2106.09685) of the kernels of any network: W + alpha / rank · A B.

They are a change of parameters, not of networks: kernels of dense layers and convolutions, scanned ones too, have `A`
and `B` beside them in the tree of parameters until `fold_lora` adds their product. So the network, the samplers and
their compiled programs are the same with and without adapters. Frozen kernels are never changed, and since `B` starts
at 0, a run starts from what its parent predicts, to the bit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util

from imagen_jax.config.schema import AdapterConfig
from imagen_jax.parallel.scan_params import is_stacked
from imagen_jax.stages.trainable import Tree, check_patterns, param_paths

LORA_A, LORA_B = "lora_a", "lora_b"
KERNEL = "kernel"


class Factors(NamedTuple):
    """The change of one kernel, scale · A B; `a` and `b` have the shapes of `factor_shapes`."""

    a: Any
    b: Any
    scale: float


def adapted_modules(params: Tree, targets: Sequence[str]) -> list[str]:
    """Returns the paths of the modules whose kernels are adapted, such as `middle_attend/text_0/query`.

    Args:
        params: of the network; arrays or abstract arrays.
        targets: regular expressions, each searched for in these paths; none for all.

    Raises:
        ConfigError: one matches no module that has a kernel.
    """
    modules = [path.removesuffix(f"/{KERNEL}") for path in param_paths(params) if path.endswith(f"/{KERNEL}")]
    check_patterns("adapter.targets", targets, modules, f"the network's {len(modules)} kernels")
    return [path for path in modules if not targets or any(re.search(pattern, path) for pattern in targets)]


def factor_shapes(path: str, kernel: Sequence[int], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the shapes of `A` and `B` for the kernel of a module.

    `A` has the kernel's axes with `rank` outputs, and `B` maps them to its outputs; each layer of a stack of scanned
    ones has its own.

    Args:
        path: of the module.
        kernel: shape of its kernel, [..., in, out], with a leading layer axis in a stack.
        rank: of the product.
    """
    *before, out = kernel
    layers = before[:1] if is_stacked(f"{path}/") else []
    return (*before, rank), (*layers, rank, out)


def init_lora(params: Tree, config: AdapterConfig, key: jax.Array) -> Tree:
    """Returns an adapter for parameters: `A` is Gaussian with variance 1 / rank, `B` is 0.

    Args:
        params: of the network.
        config: rank and targets.
        key: of the random values.

    Raises:
        ConfigError: as `adapted_modules`.
    """
    leaves, factors = traverse_util.flatten_dict(params, sep="/"), {}
    for index, path in enumerate(adapted_modules(params, config.targets)):
        a_shape, b_shape = factor_shapes(path, leaves[f"{path}/{KERNEL}"].shape, config.rank)
        factors[f"{path}/{LORA_A}"] = jax.random.normal(jax.random.fold_in(key, index), a_shape) * config.rank**-0.5
        factors[f"{path}/{LORA_B}"] = jnp.zeros(b_shape)
    adapter: Tree = traverse_util.unflatten_dict(factors, sep="/")
    return adapter


def fold_lora(params: Tree, scale: float | jax.Array) -> Tree:
    """Returns parameters without the adapter among them: kernels have `scale` times its products added.

    Args:
        params: of a network, with `lora_a` and `lora_b` beside some kernels.
        scale: of the products; with 0, and finite adapters, the kernels are equal to the bit.
    """
    folded: Tree = {}
    for name, value in params.items():
        folded[name] = fold_lora(value, scale) if isinstance(value, dict) else value
    if LORA_A in folded:
        a, b = folded.pop(LORA_A), folded.pop(LORA_B)
        folded[KERNEL] = add_product(folded[KERNEL], a, b, scale)
    return folded


def add_product(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float | jax.Array) -> jax.Array:
    """Returns a kernel [..., in, out] plus `scale` times the product of `a` and `b`, see `factor_shapes`."""
    product = jnp.matmul(a, with_axes(b, a.ndim), precision=jax.lax.Precision.HIGHEST)
    return kernel + jnp.asarray(scale, kernel.dtype) * product.astype(kernel.dtype)


def with_axes(b: Any, axes: int) -> Any:
    """Returns `B` with as many axes as `A`; those of a convolution's pixels have length 1."""
    return b.reshape(*b.shape[:-2], *[1] * (axes - b.ndim), *b.shape[-2:])
