"""Floating-point operations, counted in a jaxpr: exact, on any machine, with nothing compiled or run.

Matrix products and convolutions count, a multiplication and its addition as 2; all else is left out, as usual when what
a network needs is compared with a machine's peak. What a convolution multiplies of its padding counts too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from jax.extend import core

Jaxpr = core.Jaxpr | core.ClosedJaxpr
# Kernels written by hand, and what runs once a device: how often the inside runs does not stand in the jaxpr.
OPAQUE = ("pallas_call", "shard_map", "ffi_call")


def count_flops(jaxpr: Jaxpr) -> int:
    """The operations of one evaluation of a jaxpr, such as ``jax.make_jaxpr(function)(*arguments)``.

    What is nested in it counts: a scan as often as it turns, of a ``cond`` the dearest branch.

    Raises:
        ValueError: it has a loop of unknown length with counted operations inside, or a call that cannot be seen into.
    """
    return sum(equation_flops(equation) for equation in jaxpr.eqns)


def equation_flops(equation: core.JaxprEqn) -> int:
    """The operations of one equation. Raises as ``count_flops``."""
    name = equation.primitive.name
    if name == "dot_general":
        return dot_flops(equation)
    if name == "conv_general_dilated":
        return convolution_flops(equation)
    if name in OPAQUE:
        raise ValueError(f"{name} cannot be counted: how often its inside runs does not stand in the jaxpr")
    inside = [count_flops(jaxpr) for jaxpr in called(equation)]
    if name == "while" and any(inside):
        raise ValueError("a while loop with matrix products cannot be counted: how often it turns is not known")
    if name == "cond":
        return max(inside)
    return sum(inside) * (equation.params["length"] if name == "scan" else 1)


def called(equation: core.JaxprEqn) -> Iterator[Jaxpr]:
    """The jaxprs among an equation's parameters: the functions that it calls."""
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, (core.Jaxpr, core.ClosedJaxpr)):
                yield item


def dot_flops(equation: core.JaxprEqn) -> int:
    """2 for every number of the output and every index that is summed over."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = shape(equation.invars[0])
    return 2 * math.prod(shape(equation.outvars[0])) * math.prod(left[axis] for axis in contracted)


def convolution_flops(equation: core.JaxprEqn) -> int:
    """2 for every number of the output and every weight of its filter; a group's filter has its own channels only."""
    kernel = shape(equation.invars[1])
    filters = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(shape(equation.outvars[0])) * math.prod(kernel) // filters


def shape(variable: Any) -> tuple[int, ...]:
    """The shape of a variable or constant of a jaxpr that stands for an array."""
    return variable.aval.shape
