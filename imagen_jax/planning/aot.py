"""Ahead-of-time compilation by libtpu for TPUs that are not attached."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from importlib.util import find_spec
from typing import Any

import jax
from jax.experimental import topologies

from imagen_jax.errors import ConfigError
from imagen_jax.planning.hardware import GIB, Topology

# XLA's effort ranges from -1 to 1; 0 is the default.
_QUICK_OPTIONS: Any = {"exec_time_optimization_effort": -1.0}
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program that XLA has compiled for one chip.

    Attributes:
        hlo_text: the optimized program; None if it does not fit into memory.
        peak_bytes: peak memory of a chip: arguments, outputs, temporaries and code.
        temporary_bytes: the temporaries.
        code_bytes: the code.
        compile_seconds: wall-clock time.
        cpu_seconds: CPU time of the compilation, which does not depend on the load of the machine.
    """

    hlo_text: str | None
    peak_bytes: int
    temporary_bytes: int
    code_bytes: int
    compile_seconds: float
    cpu_seconds: float


def has_compiler() -> bool:
    """Returns whether libtpu is installed."""
    return find_spec("libtpu") is not None


def topology_devices(topology: Topology) -> list[jax.Device]:
    """Returns the chips of a topology as devices to compile for. Raises ConfigError if libtpu does not know it."""
    # do not look for TPUs of this machine
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # take no lock: two plans may be made at once, or one beside a run
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    options: dict[str, object] = {"num_slices": topology.num_slices} if topology.num_slices > 1 else {}
    if topology.chip.megacore:
        options["chip_config_name"] = "megacore"
    if topology.num_chips == topology.num_slices:
        # by default libtpu expects more than one chip per host
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology.slice_name, **options)
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        message = " ".join(str(error).split())
        raise ConfigError(f"topology {str(topology)!r} is not supported by libtpu: {message}") from error
    return list(description.devices)


def compile_lowered(lowered: jax.stages.Lowered, argument_bytes: int, quick: bool) -> Compiled:
    """Compiles a program for the devices that it was lowered for.

    Args:
        lowered: the program.
        argument_bytes: arguments on each chip, with those that the program does not read, of which XLA knows nothing;
            of a program that does not fit it may report only the temporaries.
        quick: whether to compile with little effort.
    """
    start, cpu_start = time.perf_counter(), time.process_time()
    try:
        compiled = lowered.compile(compiler_options=_QUICK_OPTIONS if quick else None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        peak, temporary = parse_out_of_memory(str(error), argument_bytes)
        return Compiled(None, peak, temporary, 0, time.perf_counter() - start, time.process_time() - cpu_start)
    seconds = time.perf_counter() - start, time.process_time() - cpu_start
    memory: Any = compiled.memory_analysis()
    temporary, code = memory.temp_size_in_bytes, memory.generated_code_size_in_bytes
    # what the program does not read, as a text encoder that others need, is held as well
    held = max(memory.argument_size_in_bytes, argument_bytes)
    io_bytes = held + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(compiled.as_text(), io_bytes + temporary + code, temporary, code, *seconds)


def parse_out_of_memory(message: str, argument_bytes: int) -> tuple[int, int]:
    """Returns (peak, temporaries) in bytes from XLA's error about a program that does not fit.

    The message has one of the two: the peak, or the temporaries alone.

    Raises:
        ValueError: the message has neither.
    """
    if match := re.search(r"HLO temporaries \(([\d.]+)([KMG])\)", message):
        temporary = _parse_bytes(*match.groups())
        return argument_bytes + temporary, temporary
    if match := re.search(r"Used ([\d.]+)([KMG]) of", message):
        peak = _parse_bytes(*match.groups())
        return peak, max(peak - argument_bytes, 0)
    raise ValueError(f"XLA's out-of-memory error does not report the memory that is needed: {message[:500]}")


def _parse_bytes(number: str, unit: str) -> int:
    """Returns the bytes of "12.5" and "G"."""
    return int(float(number) * _UNITS[unit])


def format_gib(num_bytes: float) -> str:
    """Returns a number of bytes in GiB as text."""
    return f"{num_bytes / GIB:,.2f} GiB"
