"""Batches on a mesh: placement of host batches, micro-batches, and padding.

A batch is a pytree of arrays [B, ...]. Its first axis is sharded over `data` and `fsdp`; images [B, H, W, C], the only
arrays of four axes, are sharded over `spatial` by rows too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from imagen_jax.parallel.mesh import BATCH_AXES, num_batch_shards
from imagen_jax.parallel.sharding import device_put_global


def batch_sharding(mesh: Mesh | AbstractMesh, ndim: int = 1) -> NamedSharding:
    """Returns the sharding of an array [B, ...] with `ndim` axes; four axes are images [B, H, W, C]."""
    return NamedSharding(mesh, _batch_spec(ndim))


def constrain_batch(batch: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Returns a batch with sharding constraints, inside of jit."""
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, batch_sharding(mesh, leaf.ndim)), batch)


def micro_batches(batch: Any, count: int, mesh: Mesh) -> Any:
    """Returns a batch split into micro-batches, [count, B/count, ...], inside of jit.

    Micro-batch m has the examples m, m + count, m + 2·count, …, so that every device keeps its own; with consecutive
    examples most would be transferred.
    """

    def split(leaf: jax.Array) -> jax.Array:
        rows = leaf.reshape(leaf.shape[0] // count, count, *leaf.shape[1:])
        sharding = NamedSharding(mesh, PartitionSpec(None, *_batch_spec(leaf.ndim)))
        return jax.lax.with_sharding_constraint(rows.swapaxes(0, 1), sharding)

    return jax.tree.map(split, batch)


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Returns the indices [rows] of the examples of a global batch that this process has to load, in order.

    Devices of this process may hold a part of an image only; its process still loads all of it.
    """
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices.values()]))


def shard_local_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns a global batch [B, ...] on the mesh, of which each process gives its `local_rows`.

    Args:
        batch: arrays [rows, ...] of this process.
        mesh: the mesh of all processes.
    """
    shards = num_batch_shards(mesh)
    local_shards = len(local_rows(shards, mesh))

    def put(array: np.ndarray) -> jax.Array:
        # the global shape is explicit, because jax would take the rows of an image as a part of them
        shape = (len(array) // local_shards * shards, *array.shape[1:])
        return jax.make_array_from_process_local_data(batch_sharding(mesh, array.ndim), array, shape)

    return {name: put(array) for name, array in batch.items()}


def shard_host_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns a global batch on the mesh, from host arrays [B, ...] that every process has completely."""
    return device_put_global(dict(batch), {name: batch_sharding(mesh, array.ndim) for name, array in batch.items()})


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


def _batch_spec(ndim: int) -> PartitionSpec:
    return PartitionSpec(BATCH_AXES, "spatial") if ndim == 4 else PartitionSpec(BATCH_AXES)
