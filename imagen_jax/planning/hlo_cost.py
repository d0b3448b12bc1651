"""Cost of a compiled program: FLOPs, memory traffic and collectives."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from imagen_jax.planning.flops import dot_flops
from imagen_jax.planning.hlo import Computation, Instruction, Module, called_computations

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Prefix of XLA's fused computations that implement a reduce-scatter.
REDUCE_SCATTER_FUSION = "all-reduce-scatter"
# Opcodes without memory traffic: aliases, and calls, whose bodies are counted.
NO_TRAFFIC = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "opt-barrier",
    "partition-id",
    "replica-id",
    "async-start",
    "async-update",
}
SLICES = ("slice", "dynamic-slice", "gather")
UPDATE = "dynamic-update-slice"


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An instruction or a fusion that runs by itself on each chip.

    Attributes:
        opcode: XLA's name of the operation.
        op_name: the JAX scope that it comes from.
        count: how often it runs.
        flops: operations of one run.
        bytes: HBM bytes that one run reads and writes.
    """

    opcode: str
    op_name: str
    count: int
    flops: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Collective:
    """A communication of the chips of a slice.

    Attributes:
        kind: one of COLLECTIVES.
        count: how often it runs.
        operand_bytes: size of the operand on each chip.
        groups: indices along the mesh of the chips that communicate, [groups, members]; for a permutation, pairs of
            sender and receiver.
    """

    kind: str
    count: int
    operand_bytes: int
    groups: np.ndarray

    @property
    def sent_bytes(self) -> int:
        """Returns the bytes that each chip sends in one run, with the best algorithm."""
        members = self.groups.shape[1]
        if self.kind == "all-gather":
            return self.operand_bytes * (members - 1)
        if self.kind.endswith(("permute", "broadcast")):
            return self.operand_bytes
        passes = 2 if self.kind == "all-reduce" else 1
        return passes * self.operand_bytes * (members - 1) // members


def find_kernels(module: Module) -> list[Kernel]:
    """Returns the kernels of a program: instructions outside of fusions, and each fusion as one kernel."""
    return [
        Kernel(
            opcode=instruction.opcode,
            op_name=_op_name(instruction),
            count=count,
            flops=_instruction_flops(module, module.computations[name], instruction),
            bytes=_hbm_traffic(module, module.computations[name], instruction),
        )
        for name, count in module.execution_counts.items()
        if name not in module.fused_computations
        for instruction in module.computations[name].values()
        if instruction.opcode not in NO_TRAFFIC and not instruction.opcode.endswith("-done")
    ]


def find_collectives(module: Module) -> list[Collective]:
    """Returns the collectives of a program, those in fusions too, without those of a single chip."""
    collectives = []
    for name, count in module.execution_counts.items():
        computation = module.computations[name]
        for instruction in computation.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            if kind == "all-reduce" and name.startswith(REDUCE_SCATTER_FUSION):
                kind = "reduce-scatter"
            size = sum(computation[operand].bytes for operand in instruction.operands)
            groups = _parse_groups(instruction.attributes, module.num_partitions)
            collectives.append(Collective(kind, count, size, groups))
    return [collective for collective in collectives if collective.groups.shape[1] > 1]


def dcn_bytes(module: Module) -> int:
    """Returns the bytes that each chip sends to other slices, through its host.

    The program of several slices is that of one slice; transfers to others are sends, not collectives.
    """
    return sum(
        count * module.computations[name][instruction.operands[0]].bytes
        for name, count in module.execution_counts.items()
        for instruction in module.computations[name].values()
        if instruction.opcode == "send" and "_xla_megascale_target" in instruction.attributes
    )


def _op_name(instruction: Instruction) -> str:
    """Returns the JAX scope that an instruction comes from, or else its name."""
    match = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return match[1] if match else instruction.name


def _instruction_flops(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Returns the operations of a matrix product, a convolution, or all of those in a fusion; 2 per multiply-add."""
    if instruction.opcode == "convolution":
        return _convolution_flops(computation, instruction)
    if instruction.opcode == "dot":
        return _dot_flops(computation, instruction)
    if instruction.opcode != "fusion":
        return 0
    fused = [module.computations[name] for name in called_computations(instruction)]
    return sum(_instruction_flops(module, body, inner) for body in fused for inner in body.values())


def _dot_flops(computation: Computation, instruction: Instruction) -> int:
    """Returns the operations of a matrix product."""
    contracting = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    axes = _parse_numbers(contracting[1]) if contracting else []
    return dot_flops(instruction.outputs[0].dims, computation[instruction.operands[0]].outputs[0].dims, axes)


def _convolution_flops(computation: Computation, instruction: Instruction) -> int:
    """Returns 2 per output element and weight that is multiplied by an element of the input or its padding.

    This agrees with `flops.count_flops`, except that the holes of a dilated input do not count, and neither does
    padding that is at least as large as the input: XLA writes matrix products of many axes as convolutions with such
    holes or padding.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None  # every convolution has them
    inputs, weights, results = labels.groups()
    input_dims = computation[instruction.operands[0]].outputs[0].dims
    output = instruction.outputs[0].dims
    kernel = computation[instruction.operands[1]].outputs[0].dims
    window = _parse_window(instruction.attributes)
    taps = 1
    for axis in filter(str.isdigit, results):
        size, stride, pad, holes = (window[field][int(axis)] for field in ("size", "stride", "pad", "lhs_dilate"))
        dilation = window["rhs_dilate"][int(axis)]
        positions = np.arange(output[results.index(axis)])[:, None] * stride + np.arange(size) * dilation - pad
        length = input_dims[inputs.index(axis)]
        valid = positions % holes == 0
        if pad >= length:
            valid &= (positions >= 0) & (positions < length * holes)
        taps *= int(np.count_nonzero(valid))
    return 2 * taps * output[results.index("b")] * output[results.index("f")] * kernel[weights.index("i")]


def _parse_window(attributes: str) -> dict[str, list[int]]:
    """Returns the fields of a convolution's window, with a number for each axis; `pad` is the padding before."""
    match = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in match[1].split()) if match else {}
    sizes = [int(size) for size in fields.get("size", "").split("x") if size]
    window = {
        "size": sizes,
        "pad": [int(ends.split("_")[0]) for ends in fields["pad"].split("x")] if "pad" in fields else [0] * len(sizes),
    }
    for field in ("stride", "lhs_dilate", "rhs_dilate"):
        window[field] = [int(value) for value in fields[field].split("x")] if field in fields else [1] * len(sizes)
    return window


def _hbm_traffic(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Returns the HBM bytes that an instruction reads and writes."""
    operands = [computation[name] for name in instruction.operands]
    if 'custom_call_target="AllocateBuffer"' in instruction.attributes:
        return 0
    if instruction.opcode in SLICES:
        return 2 * instruction.hbm_bytes
    if instruction.opcode == UPDATE:
        return 2 * operands[1].hbm_bytes
    if instruction.opcode == "fusion":
        return _fusion_traffic(module, operands, instruction)
    if instruction.opcode.removesuffix("-start") in SLICES:
        # asynchronous: its outputs are its operands, followed by the slice
        part = instruction.outputs[len(operands)]
        return part.bytes * (operands[0].outputs[0].in_hbm + part.in_hbm)
    read = sum(operand.hbm_bytes for operand in operands)
    if instruction.opcode.endswith("-start"):
        # asynchronous: its outputs include its operands and synchronization flags
        written = instruction.outputs[0]
        return read + (written.bytes if written.in_hbm else 0)
    return read + instruction.hbm_bytes


def _fusion_traffic(module: Module, operands: list[Instruction], fusion: Instruction) -> int:
    """Returns the HBM bytes that a fusion reads and writes; of arrays that it slices or updates, only the slice."""
    (name,) = called_computations(fusion)
    body = module.computations[name]
    parameters = {int(inner.operand_text): inner for inner in body.values() if inner.opcode == "parameter"}
    read = sum(min(operand.hbm_bytes, _used_bytes(body, parameters[i])) for i, operand in enumerate(operands))
    root = next(inner for inner in body.values() if inner.is_root)
    results = [body[part] for part in root.operands] if root.opcode == "tuple" else [root]
    written = 0
    for output, part in zip(fusion.outputs, results, strict=False):
        source = _skip_bitcasts(body, part)
        size = body[source.operands[1]].bytes if source.opcode == UPDATE else output.bytes
        written += size if output.in_hbm else 0
    return read + written


def _used_bytes(body: Computation, parameter: Instruction) -> int:
    """Returns the bytes of a fusion's parameter that the fusion reads."""
    users = list(_find_users(body, parameter.name))
    if all(user.opcode in SLICES for user, _ in users):
        return sum(user.bytes for user, _ in users)
    if all(user.opcode == UPDATE and index == 0 for user, index in users):
        return 0
    return parameter.bytes


def _find_users(body: Computation, name: str) -> Iterator[tuple[Instruction, int]]:
    """Yields (user of an instruction, index among its operands), through bitcasts."""
    for instruction in body.values():
        for index, operand in enumerate(instruction.operands):
            if operand != name:
                continue
            if instruction.opcode == "bitcast" and not instruction.is_root:
                yield from _find_users(body, instruction.name)
            else:
                yield instruction, index


def _skip_bitcasts(body: Computation, instruction: Instruction) -> Instruction:
    """Returns the instruction at the start of a chain of bitcasts."""
    while instruction.opcode == "bitcast":
        instruction = body[instruction.operands[0]]
    return instruction


def _parse_groups(attributes: str, num_chips: int) -> np.ndarray:
    """Returns the groups of a collective, [groups, members]; one group of all chips if it has none.

    XLA writes groups as lists, as a reshaped and transposed range, or by the axes of a mesh.
    """
    if pairs := re.search(r"source_target_pairs=\{(\{[^=]*\})\}", attributes):
        return _parse_group_lists(pairs[1])
    if lists := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", attributes):
        return _parse_group_lists(lists[1])
    if ranges := re.search(r"replica_groups=\[([\d,]+)\](<=\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
        return _parse_iota(ranges[2]).reshape(_parse_numbers(ranges[1]))
    if mesh := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*(?:\([\d,]*\))?)\))? \{([^}]*)\}", attributes
    ):
        return _parse_mesh_groups(*mesh.groups())
    return np.arange(num_chips)[None]


def _parse_group_lists(text: str) -> np.ndarray:
    """Returns the groups of a text such as "{0,1},{2,3}"."""
    return np.array([_parse_numbers(group) for group in re.findall(r"\{([\d,]*)\}", text)])


def _parse_numbers(text: str) -> list[int]:
    """Returns the numbers of a text such as "2,3"."""
    return [int(number) for number in text.split(",") if number]


def _parse_iota(text: str) -> np.ndarray:
    """Returns the indices of a text such as "<=[2,4]T(1,0)": a reshaped and transposed range, flattened."""
    dims = re.search(r"\[([\d,]+)\]", text)
    assert dims is not None  # the patterns that match these texts have them
    axes = re.search(r"T\(([\d,]+)\)", text)
    shape = _parse_numbers(dims[1])
    array = np.arange(math.prod(shape)).reshape(shape)
    return (array.transpose(_parse_numbers(axes[1])) if axes else array).ravel()


def _parse_mesh_groups(axes: str, order: str | None, group_axes: str) -> np.ndarray:
    """Returns groups that are written by the axes of a mesh.

    Args:
        axes: sizes of the mesh's axes, such as "'a'=4,'b'=2".
        order: device indices, if they are not a range.
        group_axes: the axes of a group, such as "'a'"; "'a':(2)4" is the sub-axis of size 4 with 2 before it.
    """
    names = [(name, int(size)) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)]
    parts = {name: (int(before), int(size)) for name, before, size in re.findall(r"'(\w+)':\((\d+)\)(\d+)", group_axes)}
    full_axes = set(re.findall(r"'(\w+)'(?!:)", group_axes))
    total = math.prod(size for _, size in names)
    ids = np.arange(total) if not order else _parse_iota(order) if "[" in order else np.array(_parse_numbers(order))
    shape, in_group = [], []
    for name, size in names:
        before, part = parts.get(name, (1, size))
        in_group += [False, name in full_axes or name in parts, False]
        shape += [before, part, size // before // part]
    outer = [axis for axis, is_member in enumerate(in_group) if not is_member]
    inner = [axis for axis, is_member in enumerate(in_group) if is_member]
    members = math.prod(shape[axis] for axis in inner)
    return ids.reshape(shape).transpose(outer + inner).reshape(-1, members)
