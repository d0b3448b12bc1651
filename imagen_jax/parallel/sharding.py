"""Sharding of parameters, optimizer states and EMA: rules over parameter paths, FSDP by default, and placement."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from imagen_jax.errors import ConfigError
from imagen_jax.parallel.mesh import MESH_AXES
from imagen_jax.parallel.scan_params import is_stacked

ParamPath = tuple[str, ...]  # keys from the root of a parameter tree
Index = tuple[slice, ...]
ReadSliceFn = Callable[[ParamPath, Index], np.ndarray]
# In order: regular expressions for parameter paths, each with the mesh axis, or None, of each dimension.
ShardingRules = Sequence[tuple[str, Sequence[str | None]]]

# Smaller arrays are replicated: sharding them costs more latency than it saves memory.
MIN_SHARD_SIZE = 2**14


def _fsdp_spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """Returns FSDP's spec: the largest dimension that is divisible by `fsdp` is sharded, the last one of equals.

    Args:
        shape: shape of the parameter; of one layer, if layers are stacked.
        fsdp: size of the mesh's `fsdp` axis.

    Returns:
        The spec; replicated if no dimension is divisible, or for less than `MIN_SHARD_SIZE` elements.
    """
    if math.prod(shape) < MIN_SHARD_SIZE:
        return PartitionSpec()
    candidates = [(size, axis) for axis, size in enumerate(shape) if size % fsdp == 0]
    if not candidates:
        return PartitionSpec()
    _, axis = max(candidates)
    return PartitionSpec(*("fsdp" if axis == i else None for i in range(len(shape))))


def check_sharding_rules(rules: ShardingRules) -> None:
    """Raises ConfigError unless each rule is a regular expression with distinct mesh axes."""
    for number, rule in enumerate(rules):
        name = f"config.sharding_rules[{number}] {rule!r}"
        try:
            pattern, axes = rule
            re.compile(pattern)
            sharded = [axis for axis in axes if axis is not None]
        except (TypeError, ValueError, re.error) as error:
            raise ConfigError(
                f"{name} is not a regular expression with an axis for each dimension ({error}): "
                "give for example ('stem/kernel', (None, None, None, 'fsdp'))"
            ) from error
        if len(set(sharded) & set(MESH_AXES)) < len(sharded):
            raise ConfigError(f"{name} has axes other than {', '.join(MESH_AXES)} and None, or an axis twice")


def param_shardings(abstract: Any, mesh: Mesh | AbstractMesh, rules: ShardingRules = (), params: Any = None) -> Any:
    """Returns shardings for a pytree of parameters, optimizer states or EMA.

    The first rule whose regular expression is found in a path applies, otherwise FSDP's rule, see `_fsdp_spec`. Specs
    are for single layers: the layer axis of stacked parameters is never sharded, so that a device has a part of each
    layer and gathers one layer at a time.

    Args:
        abstract: pytree of arrays or `jax.ShapeDtypeStruct`.
        mesh: the mesh.
        rules: sharding rules.
        params: the parameters, if `abstract` contains more than them: arrays whose path ends in that of a parameter,
            such as its moments, are sharded like it.

    Returns:
        A pytree of `NamedSharding` with the structure of `abstract`.

    Raises:
        ConfigError: a rule matches no parameter, or does not fit the shape of one.
    """
    leaves = jax.tree_util.tree_leaves_with_path(abstract if params is None else params)
    shapes = {key_path(path): _layer_shape(key_path(path), leaf) for path, leaf in leaves}
    specs = _match_rules(shapes, rules, mesh)

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        name = key_path(path)
        keys = name.split("/")
        shape = _layer_shape(name, leaf)
        parameter = next((suffix for i in range(len(keys)) if (suffix := "/".join(keys[i:])) in shapes), None)
        if parameter in specs:
            spec = _opt_state_spec(specs[parameter], shapes[parameter], shape)
        else:
            spec = _fsdp_spec(shape, mesh.shape["fsdp"])
        has_sharded_layers = is_stacked(name) and any(spec)
        return NamedSharding(mesh, PartitionSpec(None, *spec) if has_sharded_layers else spec)

    return jax.tree_util.tree_map_with_path(sharding, abstract)


def with_shardings(shapes: Any, mesh: Mesh | AbstractMesh, rules: ShardingRules = (), params: Any = None) -> Any:
    """Returns a pytree of `jax.ShapeDtypeStruct` with the shardings of `param_shardings`; same arguments."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        param_shardings(shapes, mesh, rules, params),
    )


def load_params(shapes: Any, read: ReadSliceFn, mesh: Mesh) -> Any:
    """Loads parameters with the shardings of `param_shardings`, see `load_slices`.

    Args:
        shapes: nested dicts of `jax.ShapeDtypeStruct`.
        read: returns a slice of the array at a path, in any dtype.
        mesh: the mesh.
    """
    return load_slices(with_shardings(shapes, mesh), read)


def load_slices(abstract: Any, read: ReadSliceFn) -> Any:
    """Loads arrays.

    Each process reads the slices that its devices need, one array after another, so that host memory stays within these
    slices and what reading one array takes.

    Args:
        abstract: nested dicts of `jax.ShapeDtypeStruct` with shardings.
        read: returns a slice of the array at a path, in any dtype.

    Returns:
        Nested dicts of arrays, in the dtypes of `abstract`.
    """

    def load(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        slices: dict[tuple, np.ndarray] = {}  # devices with the same slice share its data

        def read_slice(index: Index | None) -> np.ndarray:
            assert index is not None  # jax requests slices for this process's devices only
            bounds = tuple(axis.indices(size)[:2] for axis, size in zip(index, leaf.shape, strict=True))
            if bounds not in slices:
                values = read(tuple(entry.key for entry in path), tuple(slice(*ends) for ends in bounds))
                slices[bounds] = np.asarray(values, leaf.dtype, order="C")
            return slices[bounds]

        array = jax.make_array_from_callback(leaf.shape, leaf.sharding, read_slice, dtype=leaf.dtype)
        return jax.block_until_ready(array)  # otherwise slices pile up on the host until they are transferred

    return jax.tree_util.tree_map_with_path(load, abstract)


def replicate_conv_kernels(params: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Returns parameters with replicated convolution kernels, inside of jit, if the mesh shards kernels and rows.

    With such a mesh, XLA (jaxlib 0.10.2) shards a convolution inside a loop over its input channels too, but sums the
    parts of all devices, including the equal ones of devices that share an image. For scanned blocks the full stack is
    replicated.
    """
    if mesh.shape["fsdp"] == 1 or mesh.shape["spatial"] == 1:
        return params
    full = replicated(mesh)

    def replicate(path: Any, leaf: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(leaf, full) if _is_conv_kernel(key_path(path), leaf) else leaf

    return jax.tree_util.tree_map_with_path(replicate, params)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Returns the sharding with the full array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def device_put_global(tree: Any, shardings: Any) -> Any:
    """Returns a pytree of host arrays, equal in all processes, on devices with a pytree of shardings.

    Unlike `jax.device_put`, it does not send every array to all processes to compare them.
    """

    def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree, shardings)


def _is_conv_kernel(path: str, leaf: Any) -> bool:
    """Returns whether the array at a path is a kernel with spatial axes, before those of its inputs and outputs."""
    return path.rpartition("/")[2] == "kernel" and len(_layer_shape(path, leaf)) > 2


def _layer_shape(path: str, leaf: Any) -> tuple[int, ...]:
    """Returns the shape of an array at a path; of one layer, if layers are stacked."""
    return tuple(leaf.shape[1:] if is_stacked(path) else leaf.shape)


def key_path(path: Any) -> str:
    """Returns a path of `jax.tree_util` as a string, such as `down_0_res_0/conv_0/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _match_rules(
    shapes: Mapping[str, tuple[int, ...]], rules: ShardingRules, mesh: Mesh | AbstractMesh
) -> dict[str, PartitionSpec]:
    """Returns the specs of those parameters, given as shapes by path, that a rule matches; the first match applies.

    Raises:
        ConfigError: a rule matches no path, or has too many axes or an axis that does not divide a parameter.
    """
    specs: dict[str, PartitionSpec] = {}
    for pattern, axes in rules:
        matches = [path for path in shapes if re.search(pattern, path)]
        if not matches:
            raise ConfigError(
                f"config.sharding_rules: {pattern!r} matches no parameter: paths are such as {next(iter(shapes))!r}"
            )
        for path in set(matches) - set(specs):
            shape = shapes[path]
            shards = [1 if axis is None else mesh.shape[axis] for axis in axes]
            if len(axes) > len(shape) or any(size % n for size, n in zip(shape, shards, strict=False)):
                raise ConfigError(
                    f"config.sharding_rules: {pattern!r} cannot shard {path} of shape {shape} into {tuple(shards)}: "
                    "add a rule for this parameter before it"
                )
            specs[path] = PartitionSpec(*axes)
    return specs


def _opt_state_spec(spec: PartitionSpec, param_shape: tuple[int, ...], shape: tuple[int, ...]) -> PartitionSpec:
    """Returns the spec of an optimizer state of some shape for a parameter with a spec.

    The state has the parameter's shape, or that without one axis (Adafactor's rows and columns), or is a placeholder.
    """
    if shape == param_shape:
        return spec
    axes = (*spec, *[None] * (len(param_shape) - len(spec)))
    # which one of two equal axes is missing cannot be told, and both specs are valid
    for missing in range(len(param_shape)):
        if (*param_shape[:missing], *param_shape[missing + 1 :]) == shape:
            return PartitionSpec(*axes[:missing], *axes[missing + 1 :])
    return PartitionSpec()
