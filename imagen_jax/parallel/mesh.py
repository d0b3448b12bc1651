"""Device meshes: their axes, and checks that batches fit them.

The axes are `data`, over which parameters are replicated, and `fsdp`, over which parameters, optimizer state and EMA
are sharded; batches are sharded over both. The devices along a third axis, `spatial`, share each image by rows; XLA
exchanges the rows that convolutions need from neighbors. One device is a mesh of 1 × 1 × 1, so that there is one code
path. FSDP groups never span slices: only the sum of gradients crosses the slow network between them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from imagen_jax.errors import ConfigError

MESH_AXES = ("data", "fsdp", "spatial")
BATCH_AXES = ("data", "fsdp")


def make_mesh(axes: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """Returns a mesh.

    Args:
        axes: sizes of `data`, `fsdp` and, optionally, `spatial` (1); one of them may be -1, which is inferred.
        devices: all devices of the mesh; by default all devices of all processes.

    Raises:
        ConfigError: an unknown axis, more than one -1, sizes that do not multiply to the number of devices, or FSDP
            groups that span slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _resolve_axis_sizes(axes, len(devices))
    types = (AxisType.Auto,) * len(MESH_AXES)
    # only TPUs and GPUs of several hosts have slices
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        grid = _hybrid_device_grid(sizes, slices, devices)
    else:
        # an axis may be a part of a physical axis, such as 8 of 16 × 16 chips
        grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
    return Mesh(grid, MESH_AXES, axis_types=types)


def abstract_mesh(axes: Mapping[str, int], devices: int) -> AbstractMesh:
    """Returns a mesh without devices, for the inference of shardings.

    Args:
        axes: see `make_mesh`.
        devices: number of devices.

    Raises:
        ConfigError: see `make_mesh`.
    """
    sizes = _resolve_axis_sizes(axes, devices)
    return AbstractMesh(tuple(sizes.values()), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def num_batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Returns the number of shards of a batch, which has to divide the batch size."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(batch_size: int, mesh: Mesh | AbstractMesh, grad_accum_steps: int = 1) -> None:
    """Checks that a batch can be sharded.

    Args:
        batch_size: global batch size.
        mesh: the mesh that it is sharded over.
        grad_accum_steps: number of micro-batches, each of which is sharded.

    Raises:
        ConfigError: the batch size is not divisible by the number of shards and micro-batches.
    """
    divisor = num_batch_shards(mesh) * grad_accum_steps
    if batch_size < 1 or batch_size % divisor:
        spatial = mesh.shape["spatial"]
        devices = f"{num_batch_shards(mesh)} {'devices' if spatial == 1 else f'groups of {spatial} devices'}"
        accumulation = (
            f" × {grad_accum_steps} micro-batches (training.grad_accum_steps)" if grad_accum_steps > 1 else ""
        )
        below, above = batch_size // divisor * divisor, (batch_size // divisor + 1) * divisor
        raise ConfigError(
            f"batch_size {batch_size} is not divisible by {devices} (mesh {_format_mesh(mesh.shape)}){accumulation}: "
            f"use {f'{below} or {above}' if below > 0 else above}"
        )


def _resolve_axis_sizes(axes: Mapping[str, int], devices: int) -> dict[str, int]:
    """Returns the sizes of all axes in order, with -1 inferred. Raises ConfigError, see `make_mesh`."""
    axes = {"spatial": 1, **axes}
    if set(axes) != set(MESH_AXES):
        raise ConfigError(f"mesh has the axes {', '.join(axes)}: give exactly {', '.join(MESH_AXES)}")
    sizes = {name: int(axes[name]) for name in MESH_AXES}
    inferred = [name for name, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    formatted = _format_mesh(sizes)
    if len(inferred) > 1:
        raise ConfigError(f"mesh {formatted} has more than one -1: only one axis can be inferred")
    # each size by itself: -2 and -4 multiply to 8 as well
    positive = all(size == -1 or size > 0 for size in sizes.values())
    if not positive or devices % known or (not inferred and known != devices):
        raise ConfigError(f"mesh {formatted} does not fit {devices} devices: the sizes must multiply to {devices}")
    for name in inferred:
        sizes[name] = devices // known
    return sizes


def _hybrid_device_grid(sizes: Mapping[str, int], slices: int, devices: Sequence[Any]) -> np.ndarray:
    """Returns the devices of several slices as [data, fsdp, spatial]; each index along `data` is in one slice.

    Raises:
        ConfigError: FSDP groups would span slices.
    """
    data, fsdp, spatial = (sizes[name] for name in MESH_AXES)
    if data % slices:
        raise ConfigError(
            f"mesh {_format_mesh(sizes)} would shard parameters across {slices} slices, over the slow network: "
            f"data must be a multiple of {slices}"
        )
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, spatial), (slices, 1, 1), devices, allow_split_physical_axes=True
    )


def _format_mesh(sizes: Mapping[str, int]) -> str:
    """Returns the sizes of a mesh for messages; that of `spatial` only if it is above 1."""
    return ", ".join(f"{name}={size}" for name, size in sizes.items() if name in BATCH_AXES or size != 1)
