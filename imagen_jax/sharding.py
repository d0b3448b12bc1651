"""Meshes, and how arrays lie on them: batches over all devices, parameters split over the ``fsdp`` axis.

The axes are ``data`` (parameters replicated) and ``fsdp`` (parameters, optimizer state and EMA split); a batch is split
over both. One device is a mesh of 1 × 1, so that there is one code path.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from imagen_jax.errors import UsageError

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


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over all devices."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def own_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """The rows of a global batch that devices of this process hold, in order: those that it has to read, [rows]."""
    parts = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts.values()]))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The rows of a batch that ``own_rows`` names, [rows, ...] arrays, as part of the global batch on the mesh."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def put_whole(tree: Any, shardings: Any) -> Any:
    """A tree of host arrays that every process holds whole, laid out by a tree of shardings.

    ``jax.device_put`` does so too, but first sends every array from each process to all others to compare them.
    """

    def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree, shardings)
