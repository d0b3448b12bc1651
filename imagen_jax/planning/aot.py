"""Compilation for TPUs that are not there, by libtpu."""

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

# XLA's own scale of effort: 0 is what it does for a run.
QUICK: Any = {"exec_time_optimization_effort": -1.0}
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What XLA made of a program for one chip.

    Attributes:
        text: the program; None if it does not fit.
        peak_bytes: of a chip's memory: what it is given and gives, and what it needs meanwhile.
        temporary_bytes: the last of these alone.
        code_bytes: of the program itself.
        seconds: that XLA took.
        processor_seconds: that it kept processors busy, whatever else they had to do.
    """

    text: str | None
    peak_bytes: int
    temporary_bytes: int
    code_bytes: int
    seconds: float
    processor_seconds: float


def has_compiler() -> bool:
    """Whether libtpu is installed."""
    return find_spec("libtpu") is not None


def devices_of(topology: Topology) -> list[jax.Device]:
    """The chips of a topology, as devices to compile for. Raises UsageError if no TPU has such a shape."""
    # This machine is not asked for TPUs of its own.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # nor kept from others: two plans may be made at once, or one beside a run
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    options: dict[str, object] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.chip.cores_are_one:
        options["chip_config_name"] = "megacore"
    if topology.chips == topology.slices:
        # a host has more than one chip, if nothing is said
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.slice_name, **options)
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"topology {str(topology)!r} is none of libtpu's: {said}") from error
    return list(found.devices)


def compile_for_chips(lowered: jax.stages.Lowered, held_bytes: int, quick: bool) -> Compiled:
    """Compiles a program for the devices that it was lowered for, with little effort if ``quick``.

    ``held_bytes`` is what a chip is given: of a program that does not fit XLA may say only what comes on top.
    """
    start, processor_start = time.perf_counter(), time.process_time()
    try:
        compiled = lowered.compile(compiler_options=QUICK if quick else None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        peak, temporary = asked_for(str(error), held_bytes)
        spent = time.perf_counter() - start, time.process_time() - processor_start
        return Compiled(None, peak, temporary, 0, *spent)
    spent = time.perf_counter() - start, time.process_time() - processor_start
    memory: Any = compiled.memory_analysis()
    own = memory.temp_size_in_bytes, memory.generated_code_size_in_bytes
    given = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(compiled.as_text(), given + sum(own), *own, *spent)


def asked_for(message: str, held_bytes: int) -> tuple[int, int]:
    """(peak, temporaries) in bytes, of what XLA says of a program that does not fit. Raises ValueError if it says none.

    It says one of the two: all that would be used, or the temporaries alone.
    """
    if found := re.search(r"HLO temporaries \(([\d.]+)([KMG])\)", message):
        temporary = size(*found.groups())
        return held_bytes + temporary, temporary
    if found := re.search(r"Used ([\d.]+)([KMG]) of", message):
        peak = size(*found.groups())
        return peak, max(peak - held_bytes, 0)
    raise ValueError(f"XLA says that a program does not fit, and not how much it needs: {message[:500]}")


def size(number: str, unit: str) -> int:
    """Bytes of ``12.5`` and ``G``."""
    return int(float(number) * UNITS[unit])


def in_gib(count: float) -> str:
    """Bytes for people."""
    return f"{count / GIB:,.2f} GiB"
