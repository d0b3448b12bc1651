"""Batches on a mesh: placement of host batches, micro-batches, and padding.

A batch is a pytree of arrays [B, ...], sharded by the names of their axes, see `parallel.axes`: `batch` over `data` and
`fsdp`, the `rows` of images and videos over `spatial`. Where functions take `axes`, it is one array's axes for all
arrays of the batch, or a pytree of them, see `find_axes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from imagen_jax.parallel.axes import VECTOR, Axes, axis_names, find_axes
from imagen_jax.parallel.mesh import BATCH_AXES, num_batch_shards
from imagen_jax.parallel.sharding import device_put_global

# the mesh axes that the named axes are sharded over; the others are not sharded
_MESH_AXES = {"batch": BATCH_AXES, "rows": "spatial"}


def batch_sharding(mesh: Mesh | AbstractMesh, axes: Axes) -> NamedSharding:
    """Returns the sharding of an array with named axes."""
    return NamedSharding(mesh, _spec(axes))


def batch_shardings(batch: Any, axes: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Returns the shardings of a batch, a pytree of its structure.

    Raises:
        ValueError: no axes are declared for an array, or their number is not that of the array's.
    """
    return _map_specs(lambda _, spec: NamedSharding(mesh, spec), batch, axes)


def constrain_batch(batch: Any, axes: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Returns a batch with sharding constraints, inside of jit. Raises ValueError, see `batch_shardings`."""
    return jax.lax.with_sharding_constraint(batch, batch_shardings(batch, axes, mesh))


def micro_batches(batch: Any, axes: Any, count: int, mesh: Mesh) -> Any:
    """Returns a batch split into micro-batches, [count, B/count, ...], inside of jit.

    Micro-batch m has the examples m, m + count, m + 2·count, …, so that every device keeps its own; with consecutive
    examples most would be transferred.

    Raises:
        ValueError: see `batch_shardings`.
    """

    def split(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        rows = leaf.reshape(leaf.shape[0] // count, count, *leaf.shape[1:])
        sharding = NamedSharding(mesh, PartitionSpec(None, *spec))
        return jax.lax.with_sharding_constraint(rows.swapaxes(0, 1), sharding)

    return _map_specs(split, batch, axes)


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Returns the indices [rows] of the examples of a global batch that this process has to load, in order.

    Devices of this process may hold a part of an image only; its process still loads all of it.
    """
    indices = batch_sharding(mesh, VECTOR).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices.values()]))


def shard_local_batch(batch: Mapping[str, np.ndarray], axes: Any, mesh: Mesh) -> dict[str, jax.Array]:
    """Returns a global batch [B, ...] on the mesh, of which each process gives its `local_rows`.

    Args:
        batch: arrays [rows, ...] of this process.
        axes: the axes of each array.
        mesh: the mesh of all processes.

    Raises:
        ValueError: see `batch_shardings`.
    """
    shards = num_batch_shards(mesh)
    local_shards = len(local_rows(shards, mesh))

    def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        # the global shape is explicit, because jax would take the rows of an image as a part of them
        shape = (len(array) // local_shards * shards, *array.shape[1:])
        return jax.make_array_from_process_local_data(sharding, array, shape)

    return jax.tree.map(put, dict(batch), batch_shardings(dict(batch), axes, mesh))


def shard_host_batch(batch: Mapping[str, np.ndarray], axes: Any, mesh: Mesh) -> dict[str, jax.Array]:
    """Returns a global batch on the mesh, from host arrays [B, ...] that every process has completely.

    Raises:
        ValueError: see `batch_shardings`.
    """
    return device_put_global(dict(batch), batch_shardings(dict(batch), axes, mesh))


def padded_size(size: int, multiple: int) -> int:
    """Returns the smallest multiple of a number that is at least `size`."""
    return -(-size // multiple) * multiple


@overload
def pad_batch(values: np.ndarray, size: int, fill: float = 0) -> np.ndarray: ...
@overload
def pad_batch(values: Sequence[str], size: int, fill: str) -> list[str]: ...
def pad_batch(values: np.ndarray | Sequence[str], size: int, fill: float | str = 0) -> np.ndarray | list[str]:
    """Returns an array [B, ...] or a list of strings with entries appended, so that short batches are not recompiled.

    Args:
        values: B entries, at most `size`.
        size: number of entries of the result.
        fill: value of the appended entries.

    Raises:
        ValueError: there are more than `size` entries.
    """
    padding = size - len(values)
    if padding < 0:
        raise ValueError(f"a batch of {len(values)} cannot be padded to size {size}")
    if isinstance(values, np.ndarray):
        return np.concatenate([values, np.full((padding, *values.shape[1:]), fill, values.dtype)])
    return [*values, *[str(fill)] * padding]


def _spec(axes: Axes, ndim: int | None = None) -> PartitionSpec:
    specs = [_MESH_AXES.get(name) for name in axis_names(axes, ndim)]
    while specs and specs[-1] is None:
        specs.pop()
    return PartitionSpec(*specs)


def _map_specs(function: Callable[[Any, PartitionSpec], Any], batch: Any, axes: Any) -> Any:
    """Returns a batch with a function of each array and its spec applied."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(leaf, _spec(find_axes(axes, path), leaf.ndim)), batch
    )
