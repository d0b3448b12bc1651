"""A parser of compiled programs in XLA's text format (HLO), with the execution count of each computation.

A module has computations of instructions, one of which is the entry. The entry calls the others: a while loop once per
iteration, a fusion once, as the body of one kernel.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterator

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CALLS = re.compile(r"\b(?:calls|body|condition|true_computation|false_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_BITS = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class ArrayShape:
    """Dtype and dimensions of an array, and whether it is in HBM rather than in vector or scalar memory."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool

    @property
    def bytes(self) -> int:
        """Returns the size without the padding of the layout."""
        is_byte = self.dtype == "pred" or self.dtype.startswith("f8")
        bits = 8 if is_byte else int((_BITS.findall(self.dtype) or ["0"])[0])
        return -(-bits * math.prod(self.dims) // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: unique in its computation.
        outputs: its output arrays, more than one for a tuple.
        opcode: XLA's name of the operation.
        operands: names of instructions of the same computation.
        operand_text: the text in its parentheses: of a constant, its value; of a parameter, its index.
        attributes: the text after its parentheses.
        is_root: whether its output is the computation's output.
    """

    name: str
    outputs: tuple[ArrayShape, ...]
    opcode: str
    operands: tuple[str, ...]
    operand_text: str
    attributes: str
    is_root: bool

    @property
    def bytes(self) -> int:
        """Returns the size of all outputs."""
        return sum(shape.bytes for shape in self.outputs)

    @property
    def hbm_bytes(self) -> int:
        """Returns the size of the outputs in HBM."""
        return sum(shape.bytes for shape in self.outputs if shape.in_hbm)


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    """A program.

    Attributes:
        computations: by name; each has its instructions by name.
        entry: name of the entry computation.
        num_partitions: number of chips that run the program.
    """

    computations: dict[str, Computation]
    entry: str
    num_partitions: int

    @functools.cached_property
    def execution_counts(self) -> dict[str, int]:
        """Returns how often each computation runs in one run of the program; each branch of a conditional once."""
        counts: dict[str, int] = defaultdict(int)

        def visit(name: str, count: int) -> None:
            counts[name] += count
            for instruction in self.computations[name].values():
                trips = (self._trip_count(name, instruction) or 1) if instruction.opcode == "while" else 1
                for callee in called_computations(instruction):
                    visit(callee, count * trips)

        visit(self.entry, 1)
        return dict(counts)

    @functools.cached_property
    def fused_computations(self) -> set[str]:
        """Returns the computations within fusions: the values between their instructions are not in memory."""
        fused: set[str] = set()

        def add(name: str) -> None:
            fused.add(name)
            for instruction in self.computations[name].values():
                for callee in called_computations(instruction):
                    add(callee)

        for computation in self.computations.values():
            for instruction in computation.values():
                if instruction.opcode == "fusion":
                    for callee in called_computations(instruction):
                        add(callee)
        return fused

    @functools.cached_property
    def unbounded_loops(self) -> list[str]:
        """Returns the names of the loops with unknown trip count; they count as one iteration."""
        return [
            instruction.name
            for name in self.execution_counts
            for instruction in self.computations[name].values()
            if instruction.opcode == "while" and self._trip_count(name, instruction) is None
        ]

    def _trip_count(self, caller: str, loop: Instruction) -> int | None:
        """Returns a loop's trip count, from XLA's annotation or from its condition; None if unknown."""
        if known := _TRIP_COUNT.search(loop.attributes):
            return int(known[1])
        condition = re.search(r"condition=%([\w.\-]+)", loop.attributes)
        assert condition is not None  # every loop has one
        instructions = list(self._walk(condition[1]))
        limits = [i for i in instructions if i.opcode == "constant"]
        counters = [i for i in instructions if i.opcode == "get-tuple-element"]
        comparisons = [i for i in instructions if i.opcode == "compare" and "direction=LT" in i.attributes]
        if not len(limits) == len(counters) == len(comparisons) == 1:
            return None
        index = re.search(r"index=(\d+)", counters[0].attributes)
        assert index is not None  # every get-tuple-element has one
        start = self._tuple_constant(caller, loop.operands[0], int(index[1]))
        step = self._loop_step(loop, int(index[1]))
        return None if step is None else max(-(-(int(limits[0].operand_text) - start) // step), 0)

    def _loop_step(self, loop: Instruction, index: int) -> int | None:
        """Returns what an iteration adds to the loop's counter, an element of its tuple; None if unknown."""
        body = re.search(r"body=%([\w.\-]+)", loop.attributes)
        assert body is not None  # every loop has one
        computation = self.computations[body[1]]
        root = next(instruction for instruction in computation.values() if instruction.is_root)
        counter, step = _skip_copies(computation, computation[root.operands[index]]), 0
        while counter.opcode == "add":
            terms = [_skip_copies(computation, computation[name]) for name in counter.operands]
            constants = [term for term in terms if term.opcode == "constant"]
            if len(constants) != 1:
                return None
            step += int(constants[0].operand_text)
            (counter,) = (term for term in terms if term is not constants[0])
        return step if counter.opcode == "get-tuple-element" and step > 0 else None

    def _walk(self, name: str) -> Iterator[Instruction]:
        """Yields the instructions of a computation and of those that it calls."""
        for instruction in self.computations[name].values():
            yield instruction
            for callee in called_computations(instruction):
                yield from self._walk(callee)

    def _tuple_constant(self, name: str, tuple_name: str, index: int) -> int:
        """Returns the constant in an element of a tuple; 0 if unknown, since nearly all loops start there."""
        computation = self.computations[name]
        elements = computation[tuple_name]
        if elements.opcode != "tuple":
            return 0
        element = _skip_copies(computation, computation[elements.operands[index]])
        return int(element.operand_text) if element.opcode == "constant" else 0


def _skip_copies(computation: Computation, instruction: Instruction) -> Instruction:
    """Returns the instruction at the start of a chain of copies."""
    while instruction.opcode in ("copy", "bitcast", "convert"):
        instruction = computation[instruction.operands[0]]
    return instruction


def called_computations(instruction: Instruction) -> Iterator[str]:
    """Yields the names of the computations that an instruction runs, without the scalar functions of reductions."""
    yield from _CALLS.findall(instruction.attributes)
    for branches in _BRANCHES.findall(instruction.attributes):
        yield from _NAME.findall(branches)
    if instruction.opcode == "call":
        yield from re.findall(r"to_apply=%([\w.\-]+)", instruction.attributes)


def parse_module(text: str) -> Module:
    """Returns the module of a program's text, such as `jax.stages.Compiled.as_text()`.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY ")) and line.endswith("{"):
            name = _NAME.search(line)
            assert name is not None  # every computation has one
            current = computations[name[1]] = {}
            if line.startswith("ENTRY "):
                entry = name[1]
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            instruction = _parse_instruction(line)
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("the text is not an HLO module: it has no ENTRY computation")
    partitions = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    return Module(computations, entry, int(partitions[1]) if partitions else 1)


def _parse_instruction(line: str) -> Instruction:
    """Returns the instruction of a line `[ROOT] %name = type opcode(operands), attributes`."""
    left, _, right = line.strip().partition(" = ")
    end = _closing_parenthesis(right, 0) + 1 if right.startswith("(") else right.index(" ")
    type_text, rest = right[:end], right[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing_parenthesis(rest, len(opcode))
    operand_text = rest[len(opcode) + 1 : close]
    shapes = [
        ArrayShape(dtype, tuple(map(int, dims.split(","))) if dims else (), in_hbm="S(" not in layout)
        for dtype, dims, layout in _ARRAY.findall(type_text)
    ]
    return Instruction(
        name=left.removeprefix("ROOT ").removeprefix("%"),
        outputs=tuple(shapes),
        opcode=opcode,
        operands=tuple(_NAME.findall(operand_text)),
        operand_text=operand_text,
        attributes=rest[close + 1 :],
        is_root=left.startswith("ROOT "),
    )


def _closing_parenthesis(text: str, start: int) -> int:
    """Returns the index of the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        if text[index] == "(":
            depth += 1
        elif text[index] == ")":
            depth -= 1
            if depth == 0:
                return index
    raise ValueError(f"unbalanced parenthesis in {text[:80]!r}")
