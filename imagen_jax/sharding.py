"""Meshes, and how arrays lie on them: batches over all devices, parameters split over the ``fsdp`` axis.

The axes are ``data`` (parameters replicated) and ``fsdp`` (parameters, optimizer state and EMA split); a batch is split
over both. One device is a mesh of 1 × 1, so that there is one code path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from imagen_jax.errors import UsageError

ParameterPath = tuple[str, ...]  # names from the top of a tree of parameters down
Index = tuple[slice, ...]
ReadPart = Callable[[ParameterPath, Index], np.ndarray]

AXES = ("data", "fsdp")
BATCH = PartitionSpec(AXES)
# Splitting a small array costs more in latency than it saves in memory.
MIN_SPLIT_SIZE = 2**14


def make_mesh(axes: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices with the given axis sizes; one of them may be -1, "what is left".

    Raises:
        UsageError: an unknown axis, more than one -1, or sizes that do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if set(axes) != set(AXES):
        raise UsageError(f"mesh has the axes {', '.join(axes)}: give exactly {', '.join(AXES)}")
    sizes = {name: int(axes[name]) for name in AXES}
    free = [name for name, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    described = ", ".join(f"{name}={size}" for name, size in sizes.items())
    if len(free) > 1:
        raise UsageError(f"mesh {described} has more than one -1: only one axis can be what is left")
    # each size by itself: -2 and -4 multiply to 8 as well
    positive = all(size == -1 or size > 0 for size in sizes.values())
    if not positive or len(devices) % known or (not free and known != len(devices)):
        raise UsageError(
            f"mesh {described} does not fit {len(devices)} devices: the sizes must multiply to {len(devices)}"
        )
    for name in free:
        sizes[name] = len(devices) // known
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raises UsageError unless every device gets the same share of a global batch."""
    if batch_size < 1 or batch_size % mesh.size:
        sizes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
        below, above = batch_size // mesh.size * mesh.size, (batch_size // mesh.size + 1) * mesh.size
        raise UsageError(
            f"batch_size {batch_size} is not divisible by {mesh.size} devices (mesh {sizes}): "
            f"give {f'{below} or {above}' if below > 0 else above}"
        )


def parameter_spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """FSDP's rule: the largest dimension that ``fsdp`` divides is split, the last of equals; small arrays are not."""
    if math.prod(shape) < MIN_SPLIT_SIZE:
        return PartitionSpec()
    candidates = [(size, axis) for axis, size in enumerate(shape) if size % fsdp == 0]
    if not candidates:
        return PartitionSpec()
    _, axis = max(candidates)
    return PartitionSpec(*("fsdp" if axis == i else None for i in range(len(shape))))


def shard_parameters(abstract: Any, mesh: Mesh) -> Any:
    """A tree of shardings for a tree of abstract arrays: parameters, optimizer states and EMA alike."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, parameter_spec(leaf.shape, mesh.shape["fsdp"])), abstract)


def abstract_sharded(shapes: Any, mesh: Mesh) -> Any:
    """A tree of abstract arrays, with the shardings that ``shard_parameters`` gives them."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shard_parameters(shapes, mesh),
    )


def load_parameters(shapes: Any, read: ReadPart, mesh: Mesh) -> Any:
    """A tree of arrays of these abstract ones' shapes and dtypes, laid out as ``shard_parameters`` says.

    Each process reads the parts that its devices need, one array after the other, so that it never holds more than
    these parts and what one array takes to read.

    Args:
        shapes: nested dicts of abstract arrays.
        read: gives a part of the array at a path, in any dtype.
        mesh: where the arrays go.
    """

    def load(path: tuple, leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.Array:
        parts: dict[tuple, np.ndarray] = {}  # devices with the same part share its reading

        def part(index: Index | None) -> np.ndarray:
            assert index is not None  # jax asks for the parts of this process's devices only
            bounds = tuple(axis.indices(size)[:2] for axis, size in zip(index, leaf.shape, strict=True))
            if bounds not in parts:
                found = read(tuple(entry.key for entry in path), tuple(slice(*ends) for ends in bounds))
                parts[bounds] = np.asarray(found, leaf.dtype, order="C")
            return parts[bounds]

        array = jax.make_array_from_callback(leaf.shape, sharding, part, dtype=leaf.dtype)
        return jax.block_until_ready(array)  # else parts that wait for their transfer would pile up on the host

    return jax.tree_util.tree_map_with_path(load, shapes, shard_parameters(shapes, mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over all devices."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch, [B/processes, ...] arrays, as part of the global batch on the mesh."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}
