"""Meshes, and how arrays lie on them: batches over all devices, parameters split over the ``fsdp`` axis.

The axes are ``data`` (parameters replicated) and ``fsdp`` (parameters, optimizer state and EMA split); a batch is split
over both. The devices of a third, ``spatial``, share each image, some rows each; XLA sends between them the rows that
convolutions see of their neighbours. One device is a mesh of 1 × 1 × 1, so that there is one code path. Of several
slices each has whole ``fsdp`` groups: what crosses the slow network between them is the sum of gradients alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from imagen_jax.errors import ConfigError
from imagen_jax.parallel.scan_params import is_stacked

ParameterPath = tuple[str, ...]  # names from the top of a tree of parameters down
Index = tuple[slice, ...]
ReadPart = Callable[[ParameterPath, Index], np.ndarray]

AXES = ("data", "fsdp", "spatial")
BATCH_AXES = ("data", "fsdp")
BATCH = PartitionSpec(BATCH_AXES)
IMAGES = PartitionSpec(BATCH_AXES, "spatial")
# Splitting a small array costs more in latency than it saves in memory.
MIN_SPLIT_SIZE = 2**14
# In order, regular expressions for paths of parameters, each with the mesh axis, or None, of each dimension.
Rules = Sequence[tuple[str, Sequence[str | None]]]


def axis_sizes(axes: Mapping[str, int], devices: int) -> dict[str, int]:
    """The sizes of a mesh of so many devices; one of those given may be -1, "what is left".

    Without ``spatial`` rows are not split.

    Raises:
        UsageError: an unknown axis, more than one -1, or sizes that do not multiply to the number of devices.
    """
    axes = {"spatial": 1, **axes}
    if set(axes) != set(AXES):
        raise ConfigError(f"mesh has the axes {', '.join(axes)}: give exactly {', '.join(AXES)}")
    sizes = {name: int(axes[name]) for name in AXES}
    free = [name for name, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    described = said_sizes(sizes)
    if len(free) > 1:
        raise ConfigError(f"mesh {described} has more than one -1: only one axis can be what is left")
    # each size by itself: -2 and -4 multiply to 8 as well
    positive = all(size == -1 or size > 0 for size in sizes.values())
    if not positive or devices % known or (not free and known != devices):
        raise ConfigError(f"mesh {described} does not fit {devices} devices: the sizes must multiply to {devices}")
    for name in free:
        sizes[name] = devices // known
    return sizes


def abstract_mesh(axes: Mapping[str, int], devices: int) -> AbstractMesh:
    """A mesh of devices that are not there: enough to say how arrays would lie. Raises UsageError as ``axis_sizes``."""
    return AbstractMesh(tuple(axis_sizes(axes, devices).values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def make_mesh(axes: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices with the given axis sizes; one of them may be -1, "what is left".

    Raises:
        UsageError: as ``axis_sizes``, or sizes that split parameters between slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(axes, len(devices))
    types = (AxisType.Auto,) * len(AXES)
    # only devices that know slices have them: TPUs, and GPUs of several hosts
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        return Mesh(slice_grid(sizes["data"], sizes["fsdp"], sizes["spatial"], slices, devices), AXES, axis_types=types)
    # an axis may take a part of one of the machine's, as 8 of 16 × 16 chips
    grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=types)


def said_sizes(sizes: Mapping[str, int]) -> str:
    """The sizes of a mesh in a sentence; that of ``spatial`` where rows are split."""
    return ", ".join(f"{name}={size}" for name, size in sizes.items() if name in BATCH_AXES or size != 1)


def slice_grid(data: int, fsdp: int, spatial: int, slices: int, devices: Sequence[Any]) -> np.ndarray:
    """The devices of several slices as [data, fsdp, spatial], of each ``data`` in one of them.

    Raises UsageError where that cannot be.
    """
    if data % slices:
        raise ConfigError(
            f"mesh {said_sizes({'data': data, 'fsdp': fsdp, 'spatial': spatial})} would split parameters between "
            f"{slices} slices, over the slow network: data must be a multiple of {slices}"
        )
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, spatial), (slices, 1, 1), devices, allow_split_physical_axes=True
    )


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """In how many parts a batch is cut: what its size must be a multiple of."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(batch_size: int, mesh: Mesh | AbstractMesh, accumulation: int = 1) -> None:
    """Raises UsageError unless every device gets the same share of each of a global batch's micro-batches."""
    parts = batch_parts(mesh) * accumulation
    if batch_size < 1 or batch_size % parts:
        spatial = mesh.shape["spatial"]
        devices = f"{batch_parts(mesh)} {'devices' if spatial == 1 else f'groups of {spatial} devices'}"
        cut = f" × {accumulation} micro-batches (training.grad_accum_steps)" if accumulation > 1 else ""
        below, above = batch_size // parts * parts, (batch_size // parts + 1) * parts
        raise ConfigError(
            f"batch_size {batch_size} is not divisible by {devices} (mesh {said_sizes(mesh.shape)}){cut}: "
            f"give {f'{below} or {above}' if below > 0 else above}"
        )


def parameter_spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """FSDP's rule: the largest dimension that ``fsdp`` divides is split, the last of equals; small arrays are not.

    ``shape`` is that of one layer, where layers are stacked.
    """
    if math.prod(shape) < MIN_SPLIT_SIZE:
        return PartitionSpec()
    candidates = [(size, axis) for axis, size in enumerate(shape) if size % fsdp == 0]
    if not candidates:
        return PartitionSpec()
    _, axis = max(candidates)
    return PartitionSpec(*("fsdp" if axis == i else None for i in range(len(shape))))


def check_rules(rules: Rules) -> None:
    """Raises UsageError unless each rule is a regular expression with axes of a mesh, none of them twice."""
    for number, rule in enumerate(rules):
        where = f"config.sharding_rules[{number}] {rule!r}"
        try:
            pattern, axes = rule
            re.compile(pattern)
            split = [axis for axis in axes if axis is not None]
        except (TypeError, ValueError, re.error) as error:
            raise ConfigError(
                f"{where} is no regular expression with an axis for each dimension ({error}): "
                "give for example ('stem/kernel', (None, None, None, 'fsdp'))"
            ) from error
        if len(set(split) & set(AXES)) < len(split):
            raise ConfigError(f"{where} has other axes than {', '.join(AXES)} and None, or one of them twice")


def ruled_specs(
    shapes: Mapping[str, tuple[int, ...]], rules: Rules, mesh: Mesh | AbstractMesh
) -> dict[str, PartitionSpec]:
    """What the rules say of parameters, their shapes given by path; of each the first that is found in its path.

    Raises:
        UsageError: a rule is found in no path, or has more axes than a parameter or one that does not divide it.
    """
    specs: dict[str, PartitionSpec] = {}
    for pattern, axes in rules:
        found = [path for path in shapes if re.search(pattern, path)]
        if not found:
            raise ConfigError(
                f"config.sharding_rules: {pattern!r} is found in the path of no parameter: "
                f"they are such as {next(iter(shapes))!r}"
            )
        for path in set(found) - set(specs):
            shape = shapes[path]
            parts = [1 if axis is None else mesh.shape[axis] for axis in axes]
            if len(axes) > len(shape) or any(size % n for size, n in zip(shape, parts, strict=False)):
                raise ConfigError(
                    f"config.sharding_rules: {pattern!r} cannot split {path} of shape {shape} into {tuple(parts)}: "
                    "put a rule before it that is for this parameter"
                )
            specs[path] = PartitionSpec(*axes)
    return specs


def spec_of_part(spec: PartitionSpec, whole: tuple[int, ...], shape: tuple[int, ...]) -> PartitionSpec:
    """The spec of what an optimizer keeps, of some shape, for a parameter of shape ``whole`` with a spec.

    That is an array like it, or one without one of its axes (Adafactor's rows and columns), or else a placeholder.
    """
    if shape == whole:
        return spec
    axes = (*spec, *[None] * (len(whole) - len(spec)))
    # which of two equal axes is gone cannot be seen, and both answers can be laid out
    for gone in range(len(whole)):
        if (*whole[:gone], *whole[gone + 1 :]) == shape:
            return PartitionSpec(*axes[:gone], *axes[gone + 1 :])
    return PartitionSpec()


def shard_parameters(abstract: Any, mesh: Mesh | AbstractMesh, rules: Rules = (), params: Any = None) -> Any:
    """A tree of shardings for a tree of abstract arrays: parameters, optimizer states and EMA alike.

    What a rule is found for lies as it says, and all else by FSDP's rule. Both speak of layers: of a stack the axis in
    front is never split, so that a device has a part of each layer, and gathers one at a time.

    Args:
        abstract: the tree.
        mesh: where it lies.
        rules: see ``ruled_specs``.
        params: the parameters, where ``abstract`` is more than they are: what has a path that ends in a parameter's,
            such as a moment of it, lies as the parameter does.
    """
    leaves = jax.tree_util.tree_leaves_with_path(abstract if params is None else params)
    shapes = {path_of(path): shape_of_layer(path_of(path), leaf) for path, leaf in leaves}
    specs = ruled_specs(shapes, rules, mesh)

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        names = path_of(path).split("/")
        shape = shape_of_layer(path_of(path), leaf)
        parameter = next((end for i in range(len(names)) if (end := "/".join(names[i:])) in shapes), None)
        if parameter in specs:
            spec = spec_of_part(specs[parameter], shapes[parameter], shape)
        else:
            spec = parameter_spec(shape, mesh.shape["fsdp"])
        stacked = is_stacked(path_of(path)) and any(spec)
        return NamedSharding(mesh, PartitionSpec(None, *spec) if stacked else spec)

    return jax.tree_util.tree_map_with_path(sharding, abstract)


def shape_of_layer(path: str, leaf: Any) -> tuple[int, ...]:
    """The shape of what is at a path of parameters or their states; where layers are stacked, of one of them."""
    return tuple(leaf.shape[1:] if is_stacked(path) else leaf.shape)


def path_of(path: Any) -> str:
    """A path in a tree as ``down_0_res_0/conv_0/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def abstract_sharded(shapes: Any, mesh: Mesh | AbstractMesh, rules: Rules = (), params: Any = None) -> Any:
    """A tree of abstract arrays, with the shardings that ``shard_parameters`` gives them."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shard_parameters(shapes, mesh, rules, params),
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


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The first axis over the devices of ``data`` and ``fsdp``."""
    return NamedSharding(mesh, BATCH)


def example_spec(ndim: int) -> PartitionSpec:
    """How [B, ...] arrays lie: as a batch, and images [B, H, W, C], which alone have four axes, by their rows too."""
    return IMAGES if ndim == 4 else BATCH


def example_sharding(mesh: Mesh | AbstractMesh, ndim: int) -> NamedSharding:
    """See ``example_spec``."""
    return NamedSharding(mesh, example_spec(ndim))


def lay_examples(examples: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A tree of [B, ...] arrays, in a program, laid out as ``example_spec`` says."""
    return jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(leaf, example_sharding(mesh, leaf.ndim)), examples
    )


def micro_batches(batch: Any, count: int, mesh: Mesh) -> Any:
    """A tree of [B, ...] arrays as [count, B/count, ...]: micro-batch m has the examples m, m + count, m + 2·count, …

    So every device keeps the examples that it has; were they neighbours, most would travel.
    """

    def cut(leaf: jax.Array) -> jax.Array:
        rows = leaf.reshape(leaf.shape[0] // count, count, *leaf.shape[1:])
        sharding = NamedSharding(mesh, PartitionSpec(None, *example_spec(leaf.ndim)))
        return jax.lax.with_sharding_constraint(rows.swapaxes(0, 1), sharding)

    return jax.tree.map(cut, batch)


def whole_kernels(params: Any, mesh: Mesh | AbstractMesh) -> Any:
    """In a program, parameters with those of convolutions whole where the mesh splits both them and rows.

    There, in a loop, XLA (jaxlib 0.10.2) splits a convolution over the input channels of its kernel too, but adds up
    the parts of all devices, also those of the ones that share an image, which are the same. Of repeated blocks the
    whole stack is made whole.
    """
    if mesh.shape["fsdp"] == 1 or mesh.shape["spatial"] == 1:
        return params
    whole = replicated(mesh)
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, whole) if leaf.ndim > 3 else leaf, params)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def own_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """The rows of a global batch that devices of this process hold, in order: those that it has to read, [rows].

    Of images they may hold a part: who reads one has to read all of it.
    """
    parts = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts.values()]))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The rows of a batch that ``own_rows`` names, [rows, ...] arrays, as part of the global batch on the mesh."""
    parts = batch_parts(mesh)
    own = len(own_rows(parts, mesh))

    def put(array: np.ndarray) -> jax.Array:
        # said, for jax would take the rows of an image for a part of them
        shape = (len(array) // own * parts, *array.shape[1:])
        return jax.make_array_from_process_local_data(example_sharding(mesh, array.ndim), array, shape)

    return {name: put(array) for name, array in batch.items()}


def put_examples(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A global batch of [B, ...] host arrays that every process holds whole, laid out as ``example_spec`` says."""
    return put_whole(dict(batch), {name: example_sharding(mesh, array.ndim) for name, array in batch.items()})


def put_whole(tree: Any, shardings: Any) -> Any:
    """A tree of host arrays that every process holds whole, laid out by a tree of shardings.

    ``jax.device_put`` does so too, but first sends every array from each process to all others to compare them.
    """

    def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree, shardings)
