"""What a compiled program does: its multiplications, what it reads and writes, what chips say to each other."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from imagen_jax.planning.hlo import Computation, Instruction, Module, called

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# What XLA names the inside of a sum of which every chip keeps a part.
SUM_OF_WHICH_A_PART = "all-reduce-scatter"
# They move nothing: names of what is there, and what only calls others, whose insides are counted.
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
    """What a chip does at one place of a program, ``times`` over: multiplications, and bytes of its main memory."""

    opcode: str
    label: str
    times: int
    flops: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Collective:
    """What chips do together at one place of a program, ``times`` over.

    Attributes:
        kind: one of COLLECTIVES.
        times: how often.
        bytes: of the operand, on each chip.
        groups: of the chips that talk to each other, numbered along the mesh: [groups, members]. Of a permutation,
            pairs of sender and receiver.
    """

    kind: str
    times: int
    bytes: int
    groups: np.ndarray

    @property
    def sent_bytes(self) -> int:
        """What each chip has to send, once, if it is done as well as it can be."""
        members = self.groups.shape[1]
        if self.kind == "all-gather":
            return self.bytes * (members - 1)
        if self.kind.endswith(("permute", "broadcast")):
            return self.bytes
        both_ways = 2 if self.kind == "all-reduce" else 1
        return both_ways * self.bytes * (members - 1) // members


def kernels(module: Module) -> list[Kernel]:
    """All that runs by itself: instructions outside of fusions, and fusions as one."""
    return [
        Kernel(
            opcode=instruction.opcode,
            label=label(instruction),
            times=times,
            flops=instruction_flops(module, module.computations[name], instruction),
            bytes=traffic(module, module.computations[name], instruction),
        )
        for name, times in module.runs.items()
        if name not in module.fused
        for instruction in module.computations[name].values()
        if instruction.opcode not in NO_TRAFFIC and not instruction.opcode.endswith("-done")
    ]


def collectives(module: Module) -> list[Collective]:
    """All that chips of a slice do together, in fusions too; a group of one does nothing."""
    found = []
    for name, times in module.runs.items():
        computation = module.computations[name]
        for instruction in computation.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            if kind == "all-reduce" and name.startswith(SUM_OF_WHICH_A_PART):
                kind = "reduce-scatter"
            size = sum(computation[operand].bytes for operand in instruction.operands)
            found.append(Collective(kind, times, size, groups_of(instruction.attributes, module.chips)))
    return [collective for collective in found if collective.groups.shape[1] > 1]


def network_bytes(module: Module) -> int:
    """What each chip sends to other slices: XLA does that by its host, apart from what chips of a slice do together.

    A program for several slices is that of one of them.
    """
    return sum(
        times * module.computations[name][instruction.operands[0]].bytes
        for name, times in module.runs.items()
        for instruction in module.computations[name].values()
        if instruction.opcode == "send" and "_xla_megascale_target" in instruction.attributes
    )


def label(instruction: Instruction) -> str:
    """Where in the Python program an instruction comes from, as jax named it."""
    found = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return found[1] if found else instruction.name


def instruction_flops(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Operations of products and convolutions, a multiplication and its addition as 2, of a fusion all inside."""
    if instruction.opcode == "convolution":
        return convolution_flops(computation, instruction)
    if instruction.opcode == "dot":
        return dot_flops(computation, instruction)
    if instruction.opcode != "fusion":
        return 0
    insides = [module.computations[name] for name in called(instruction)]
    return sum(instruction_flops(module, inside, inner) for inside in insides for inner in inside.values())


def dot_flops(computation: Computation, instruction: Instruction) -> int:
    """2 for every number of the output and every index that is summed over."""
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    axes = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
    left = computation[instruction.operands[0]].outputs[0].dims
    return 2 * math.prod(instruction.outputs[0].dims) * math.prod(left[axis] for axis in axes)


def convolution_flops(computation: Computation, instruction: Instruction) -> int:
    """2 for every number of the output and every weight that meets a number of the input or its padding.

    That is what ``flops.convolution_flops`` counts, but for holes that a dilation leaves: they hold no number. Nor does
    padding count where there is no less of it than of the input. XLA writes products of matrices of many axes as
    convolutions with such holes, or such padding.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None  # every convolution has them
    inputs, weights, results = labels.groups()
    given = computation[instruction.operands[0]].outputs[0].dims
    output = instruction.outputs[0].dims
    kernel = computation[instruction.operands[1]].outputs[0].dims
    window = window_of(instruction.attributes)
    met = 1
    for axis in filter(str.isdigit, results):
        size, stride, pad, holes = (window[field][int(axis)] for field in ("size", "stride", "pad", "lhs_dilate"))
        dilation = window["rhs_dilate"][int(axis)]
        places = np.arange(output[results.index(axis)])[:, None] * stride + np.arange(size) * dilation - pad
        length = given[inputs.index(axis)]
        counts = places % holes == 0
        if pad >= length:
            counts &= (places >= 0) & (places < length * holes)
        met *= int(np.count_nonzero(counts))
    return 2 * met * output[results.index("b")] * output[results.index("f")] * kernel[weights.index("i")]


def window_of(attributes: str) -> dict[str, list[int]]:
    """A convolution's window by field, a number for each axis; ``pad`` is what stands before."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in found[1].split()) if found else {}
    sizes = [int(size) for size in fields.get("size", "").split("x") if size]
    window = {
        "size": sizes,
        "pad": [int(ends.split("_")[0]) for ends in fields["pad"].split("x")] if "pad" in fields else [0] * len(sizes),
    }
    for field in ("stride", "lhs_dilate", "rhs_dilate"):
        window[field] = [int(value) for value in fields[field].split("x")] if field in fields else [1] * len(sizes)
    return window


def traffic(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Bytes that an instruction reads from a chip's main memory and writes there."""
    operands = [computation[name] for name in instruction.operands]
    if 'custom_call_target="AllocateBuffer"' in instruction.attributes:
        return 0
    if instruction.opcode in SLICES:
        return 2 * instruction.hbm_bytes
    if instruction.opcode == UPDATE:
        return 2 * operands[1].hbm_bytes
    if instruction.opcode == "fusion":
        return fusion_traffic(module, operands, instruction)
    if instruction.opcode.removesuffix("-start") in SLICES:
        # begun here, and waited for later: it gives its operands, and then the part
        part = instruction.outputs[len(operands)]
        return part.bytes * (operands[0].outputs[0].in_hbm + part.in_hbm)
    read = sum(operand.hbm_bytes for operand in operands)
    if instruction.opcode.endswith("-start"):
        # it gives its operands too, and numbers to wait for
        written = instruction.outputs[0]
        return read + (written.bytes if written.in_hbm else 0)
    return read + instruction.hbm_bytes


def fusion_traffic(module: Module, operands: list[Instruction], fusion: Instruction) -> int:
    """What a fusion reads and writes: of what it only cuts a part from, or puts a part into, that part."""
    (name,) = called(fusion)
    inside = module.computations[name]
    parameters = {int(inner.inside): inner for inner in inside.values() if inner.opcode == "parameter"}
    read = sum(min(operand.hbm_bytes, used_bytes(inside, parameters[i])) for i, operand in enumerate(operands))
    root = next(inner for inner in inside.values() if inner.is_root)
    given = [inside[part] for part in root.operands] if root.opcode == "tuple" else [root]
    written = 0
    for output, part in zip(fusion.outputs, given, strict=False):
        behind = through_bitcasts(inside, part)
        size = inside[behind.operands[1]].bytes if behind.opcode == UPDATE else output.bytes
        written += size if output.in_hbm else 0
    return read + written


def used_bytes(inside: Computation, parameter: Instruction) -> int:
    """How much of a parameter of a fusion is looked at."""
    users = list(users_of(inside, parameter.name))
    if all(user.opcode in SLICES for user, _ in users):
        return sum(user.bytes for user, _ in users)
    if all(user.opcode == UPDATE and place == 0 for user, place in users):
        return 0
    return parameter.bytes


def users_of(inside: Computation, name: str) -> Iterator[tuple[Instruction, int]]:
    """What uses an instruction, with the place among its operands; bitcasts are looked through."""
    for instruction in inside.values():
        for place, operand in enumerate(instruction.operands):
            if operand != name:
                continue
            if instruction.opcode == "bitcast" and not instruction.is_root:
                yield from users_of(inside, instruction.name)
            else:
                yield instruction, place


def through_bitcasts(inside: Computation, instruction: Instruction) -> Instruction:
    """What a chain of bitcasts begins with."""
    while instruction.opcode == "bitcast":
        instruction = inside[instruction.operands[0]]
    return instruction


def groups_of(attributes: str, chips: int) -> np.ndarray:
    """The groups of a collective's attributes, [groups, members]; all chips are one where none are given.

    XLA writes them as lists, as a reshaped and transposed range, or by the axes of a mesh.
    """
    if pairs := re.search(r"source_target_pairs=\{(\{[^=]*\})\}", attributes):
        return listed(pairs[1])
    if lists := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", attributes):
        return listed(lists[1])
    if ranges := re.search(r"replica_groups=\[([\d,]+)\](<=\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
        return reordered(ranges[2]).reshape(numbers(ranges[1]))
    if mesh := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*(?:\([\d,]*\))?)\))? \{([^}]*)\}", attributes
    ):
        return mesh_groups(*mesh.groups())
    return np.arange(chips)[None]


def listed(text: str) -> np.ndarray:
    """Groups written as ``{0,1},{2,3}``."""
    return np.array([numbers(group) for group in re.findall(r"\{([\d,]*)\}", text)])


def numbers(text: str) -> list[int]:
    """The numbers of ``2,3``."""
    return [int(number) for number in text.split(",") if number]


def reordered(text: str) -> np.ndarray:
    """The numbers of ``<=[2,4]T(1,0)``: a range as an array whose axes change places, flat."""
    dims = re.search(r"\[([\d,]+)\]", text)
    assert dims is not None  # the patterns that find these texts have them
    axes = re.search(r"T\(([\d,]+)\)", text)
    shape = numbers(dims[1])
    array = np.arange(math.prod(shape)).reshape(shape)
    return (array.transpose(numbers(axes[1])) if axes else array).ravel()


def mesh_groups(axes: str, order: str | None, chosen: str) -> np.ndarray:
    """Groups written as axes ``'a'=4,'b'=2``, an order of devices if it is another, and the axes ``'a'`` of a group.

    Of an axis only a part may be chosen: ``'a':(2)4`` is that of size 4 with 2 before it.
    """
    names = [(name, int(size)) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)]
    parts = {name: (int(before), int(size)) for name, before, size in re.findall(r"'(\w+)':\((\d+)\)(\d+)", chosen)}
    whole = set(re.findall(r"'(\w+)'(?!:)", chosen))
    total = math.prod(size for _, size in names)
    ids = np.arange(total) if not order else reordered(order) if "[" in order else np.array(numbers(order))
    shape, inside = [], []
    for name, size in names:
        before, part = parts.get(name, (1, size))
        inside += [False, name in whole or name in parts, False]
        shape += [before, part, size // before // part]
    axes_of_groups = [axis for axis, chosen_axis in enumerate(inside) if not chosen_axis]
    axes_of_members = [axis for axis, chosen_axis in enumerate(inside) if chosen_axis]
    members = math.prod(shape[axis] for axis in axes_of_members)
    return ids.reshape(shape).transpose(axes_of_groups + axes_of_members).reshape(-1, members)
