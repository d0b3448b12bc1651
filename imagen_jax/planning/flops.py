"""Floating-point operations of a jaxpr, counted exactly, without compiling or running it.

Only matrix products and convolutions count, with 2 operations per multiply-add, as usual for model FLOPs. Products with
a convolution's padding count too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from jax.extend import core

Jaxpr = core.Jaxpr | core.ClosedJaxpr
# Custom kernels and per-device programs: the jaxpr does not tell how often their body runs.
_OPAQUE = ("pallas_call", "shard_map", "ffi_call")


def count_flops(jaxpr: Jaxpr) -> int:
    """Returns the operations of one evaluation of a jaxpr, such as `jax.make_jaxpr(function)(*arguments)`.

    Nested jaxprs count: the body of a scan by its length, and the most expensive branch of a `cond`.

    Raises:
        ValueError: the jaxpr has an opaque call, or counted operations in a loop of unknown length.
    """
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def dot_flops(output: Sequence[int], lhs: Sequence[int], contracting: Sequence[int]) -> int:
    """Returns the operations of a matrix product: 2 per output element and contracted index.

    Args:
        output: shape of the output.
        lhs: shape of the first operand.
        contracting: its contracted axes.
    """
    return 2 * math.prod(output) * math.prod(lhs[axis] for axis in contracting)


def _equation_flops(equation: core.JaxprEqn) -> int:
    """Returns the operations of one equation. Raises ValueError like `count_flops`."""
    name = equation.primitive.name
    if name == "dot_general":
        (contracting, _), _ = equation.params["dimension_numbers"]
        return dot_flops(_shape(equation.outvars[0]), _shape(equation.invars[0]), contracting)
    if name == "conv_general_dilated":
        return _convolution_flops(equation)
    if name in _OPAQUE:
        raise ValueError(f"the operations of {name} are unknown: its jaxpr does not tell how often its body runs")
    inner = [count_flops(jaxpr) for jaxpr in _sub_jaxprs(equation)]
    if name == "while" and any(inner):
        raise ValueError("the operations of a while loop are unknown: its trip count is not in the jaxpr")
    if name == "cond":
        return max(inner)
    return sum(inner) * (equation.params["length"] if name == "scan" else 1)


def _sub_jaxprs(equation: core.JaxprEqn) -> Iterator[Jaxpr]:
    """Yields the jaxprs among an equation's parameters."""
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, (core.Jaxpr, core.ClosedJaxpr)):
                yield item


def _convolution_flops(equation: core.JaxprEqn) -> int:
    """Returns 2 per output element and weight of its filter; a grouped filter has only its group's channels."""
    kernel = _shape(equation.invars[1])
    num_filters = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(_shape(equation.outvars[0])) * math.prod(kernel) // num_filters


def _shape(variable: Any) -> tuple[int, ...]:
    """Returns the shape of an array variable or constant of a jaxpr."""
    return variable.aval.shape
