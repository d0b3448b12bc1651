"""Compiled programs, as XLA prints them: instructions, and how often each of them runs.

A program is text: computations of instructions, of which one is the entry. The others are called: by a loop as often as
it turns, by a fusion, whose inside becomes one kernel, once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterator

ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
NAME = re.compile(r"%([\w.\-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
CALLS = re.compile(r"\b(?:calls|body|condition|true_computation|false_computation)=%([\w.\-]+)")
BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
BITS = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class Array:
    """What an instruction gives, or one part of it."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool  # and not in a chip's vector or scalar memory

    @property
    def bytes(self) -> int:
        """Without what its layout pads."""
        bits = 8 if self.dtype == "pred" or self.dtype.startswith("f8") else int((BITS.findall(self.dtype) or ["0"])[0])
        return -(-bits * math.prod(self.dims) // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: unique in its computation.
        outputs: the arrays that it gives; more than one of a tuple.
        opcode: as XLA calls it.
        operands: names of instructions of the same computation.
        inside: what stands between its parentheses: of a constant, its value.
        attributes: what stands behind them.
        is_root: whether its computation gives what it gives.
    """

    name: str
    outputs: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    inside: str
    attributes: str
    is_root: bool

    @property
    def bytes(self) -> int:
        """Of all its outputs."""
        return sum(array.bytes for array in self.outputs)

    @property
    def hbm_bytes(self) -> int:
        """Of those of its outputs that lie in a chip's main memory."""
        return sum(array.bytes for array in self.outputs if array.in_hbm)


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: its computations by name, the name of its entry, and how many chips run it."""

    computations: dict[str, Computation]
    entry: str
    chips: int

    @functools.cached_property
    def runs(self) -> dict[str, int]:
        """How often each computation runs when the program does once; of a conditional, each branch once."""
        counts: dict[str, int] = defaultdict(int)

        def visit(name: str, times: int) -> None:
            counts[name] += times
            for instruction in self.computations[name].values():
                turns = (self.turns(name, instruction) or 1) if instruction.opcode == "while" else 1
                for callee in called(instruction):
                    visit(callee, times * turns)

        visit(self.entry, 1)
        return dict(counts)

    @functools.cached_property
    def fused(self) -> set[str]:
        """The computations that are the inside of a kernel: what passes between their instructions is in no memory."""
        found: set[str] = set()

        def add(name: str) -> None:
            found.add(name)
            for instruction in self.computations[name].values():
                for callee in called(instruction):
                    add(callee)

        for computation in self.computations.values():
            for instruction in computation.values():
                if instruction.opcode == "fusion":
                    for callee in called(instruction):
                        add(callee)
        return found

    @functools.cached_property
    def endless(self) -> list[str]:
        """The loops of unknown length, which count as if they turned once."""
        return [
            instruction.name
            for name in self.runs
            for instruction in self.computations[name].values()
            if instruction.opcode == "while" and self.turns(name, instruction) is None
        ]

    def turns(self, caller: str, loop: Instruction) -> int | None:
        """How often a loop turns: as XLA says, or from the number that its counter is held against; None if unknown."""
        if known := TRIPS.search(loop.attributes):
            return int(known[1])
        condition = re.search(r"condition=%([\w.\-]+)", loop.attributes)
        assert condition is not None  # every loop has one
        inside = list(self.within(condition[1]))
        ends = [i for i in inside if i.opcode == "constant"]
        counters = [i for i in inside if i.opcode == "get-tuple-element"]
        below_end = [i for i in inside if i.opcode == "compare" and "direction=LT" in i.attributes]
        if not len(ends) == len(counters) == len(below_end) == 1:
            return None
        place = re.search(r"index=(\d+)", counters[0].attributes)
        assert place is not None  # what takes a part of a tuple says which
        start = self.constant_at(caller, loop.operands[0], int(place[1]))
        step = self.step_of(loop, int(place[1]))
        return None if step is None else max(-(-(int(ends[0].inside) - start) // step), 0)

    def step_of(self, loop: Instruction, index: int) -> int | None:
        """What a turn of a loop adds to the counter at a place of its tuple; None if it cannot be seen."""
        body = re.search(r"body=%([\w.\-]+)", loop.attributes)
        assert body is not None  # every loop has one
        inside = self.computations[body[1]]
        root = next(instruction for instruction in inside.values() if instruction.is_root)
        found, step = through_copies(inside, inside[root.operands[index]]), 0
        while found.opcode == "add":
            terms = [through_copies(inside, inside[name]) for name in found.operands]
            constants = [term for term in terms if term.opcode == "constant"]
            if len(constants) != 1:
                return None
            step += int(constants[0].inside)
            (found,) = (term for term in terms if term is not constants[0])
        return step if found.opcode == "get-tuple-element" and step > 0 else None

    def within(self, name: str) -> Iterator[Instruction]:
        """The instructions of a computation, and of those that it calls."""
        for instruction in self.computations[name].values():
            yield instruction
            for callee in called(instruction):
                yield from self.within(callee)

    def constant_at(self, name: str, pair: str, index: int) -> int:
        """The constant at a place of a tuple; 0, where nearly all loops start, if it cannot be seen."""
        computation = self.computations[name]
        place = computation[pair]
        if place.opcode != "tuple":
            return 0
        found = through_copies(computation, computation[place.operands[index]])
        return int(found.inside) if found.opcode == "constant" else 0


def through_copies(computation: Computation, instruction: Instruction) -> Instruction:
    """What a chain of copies begins with."""
    while instruction.opcode in ("copy", "bitcast", "convert"):
        instruction = computation[instruction.operands[0]]
    return instruction


def called(instruction: Instruction) -> Iterator[str]:
    """The computations that an instruction runs; not those that say how to add two numbers, as of a reduction."""
    yield from CALLS.findall(instruction.attributes)
    for branches in BRANCHES.findall(instruction.attributes):
        yield from NAME.findall(branches)
    if instruction.opcode == "call":
        yield from re.findall(r"to_apply=%([\w.\-]+)", instruction.attributes)


def parse(text: str) -> Module:
    """The program of a text, such as ``jax.stages.Compiled.as_text()``. Raises ValueError if it has no entry."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY ")) and line.endswith("{"):
            name = NAME.search(line)
            assert name is not None  # every computation has one
            current = computations[name[1]] = {}
            if line.startswith("ENTRY "):
                entry = name[1]
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            instruction = parse_instruction(line)
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("the text is no program of XLA's: it has no ENTRY")
    partitions = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    return Module(computations, entry, int(partitions[1]) if partitions else 1)


def parse_instruction(line: str) -> Instruction:
    """The instruction of a line ``[ROOT] %name = type opcode(operands), attributes``."""
    left, _, right = line.strip().partition(" = ")
    end = closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    kind, rest = right[:end], right[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = closing(rest, len(opcode))
    inside = rest[len(opcode) + 1 : close]
    arrays = [
        Array(dtype, tuple(map(int, dims.split(","))) if dims else (), in_hbm="S(" not in layout)
        for dtype, dims, layout in ARRAY.findall(kind)
    ]
    return Instruction(
        name=left.removeprefix("ROOT ").removeprefix("%"),
        outputs=tuple(arrays),
        opcode=opcode,
        operands=tuple(NAME.findall(inside)),
        inside=inside,
        attributes=rest[close + 1 :],
        is_root=left.startswith("ROOT "),
    )


def closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at ``start`` is closed."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "(":
            depth += 1
        elif text[place] == ")":
            depth -= 1
            if depth == 0:
                return place
    raise ValueError(f"a parenthesis is not closed: {text[:80]!r}")
