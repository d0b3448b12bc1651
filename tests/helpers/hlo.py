"""Compiled programs of XLA, for tests that read them. Mark such tests with `xla`: XLA may print them in another way."""

from imagen_jax.planning import hlo, hlo_cost


def compile_text(lowered):
    """Returns the optimized HLO of a lowered program as text."""
    return lowered.compile().as_text()


def compile_module(lowered):
    """Returns the parsed HLO of a lowered program."""
    return hlo.parse_module(compile_text(lowered))


def total_flops(module):
    """Returns the operations of one run of a program on one device."""
    return sum(kernel.count * kernel.flops for kernel in hlo_cost.find_kernels(module))


def largest_result(collectives):
    """Returns the bytes of the largest result among all-gathers."""
    return max(collective.operand_bytes * collective.groups.shape[1] for collective in collectives)
