"""Plans: the memory that a program needs on a topology, and an upper bound of its speed."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from imagen_jax.config.load import load_config
from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import ConfigError, unknown_name_error
from imagen_jax.io.atomic import atomic_write
from imagen_jax.parallel.batching import padded_size
from imagen_jax.parallel.mesh import abstract_mesh, make_mesh, num_batch_shards
from imagen_jax.planning import hlo, hlo_cost
from imagen_jax.planning.aot import Compiled, compile_lowered, has_compiler, topology_devices
from imagen_jax.planning.encoders import abstract_encoder, cached_encoder
from imagen_jax.planning.hardware import Chip, Topology, parse_topology
from imagen_jax.planning.programs import AnyMesh, Program, embed_program, sample_program, train_program
from imagen_jax.planning.roofline import TimeBounds, chip_coordinates, kernel_seconds, time_bounds
from imagen_jax.stages.precompute_text import EMBEDDING_MESH
from imagen_jax.stages.sampling import SAMPLING_MESH

logger = logging.getLogger(__name__)

INSTALL_LIBTPU = (
    "libtpu, which compiles for TPUs, is not installed: pip install 'imagen_jax[plan]', or the tested version of it "
    "alone, pip install --no-deps -r launch/libtpu.lock"
)
PLANNED_COMMANDS = ("train", "sample", "embed")
_SECONDS_PER_DAY = 86_400


@dataclasses.dataclass(frozen=True)
class PlanRequest:
    """What to plan.

    Attributes:
        command: whose program to plan, one of PLANNED_COMMANDS.
        config: of the stage.
        topology: the chips to run on.
        cached_text: whether training reads cached text embeddings, without an encoder.
        batch_size: prompts or captions at once, except in training; rounded up to a multiple of the batch parts.
        quick: whether XLA compiles with little effort.
        sampling_axes: axes of the mesh in sampling.
    """

    command: str
    config: StageConfig
    topology: Topology
    cached_text: bool
    batch_size: int
    quick: bool
    sampling_axes: dict[str, int] = dataclasses.field(default_factory=SAMPLING_MESH.copy)

    @property
    def mesh_axes(self) -> dict[str, int]:
        """Returns the axes of the command's mesh."""
        by_command = {"train": self.config.mesh.to_dict(), "sample": self.sampling_axes, "embed": EMBEDDING_MESH}
        return by_command[self.command]


def plan(
    config: StageConfig | str | Path,
    topology: str,
    *,
    command: str = "train",
    batch_size: int = 64,
    quick: bool = False,
    sampling_axes: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Estimates the memory and speed of a run on TPUs that are not attached, by compiling its program with libtpu.

    Without libtpu, a warning says how to install it, and the plan has what needs no compiler: `fits` is None where
    only the compiler can tell.

    Args:
        config: a stage's config, or the path of its file.
        topology: the chips, such as "v4:8x8x4", "v5e:16x16", or "v4:4x4x4*2" for two slices.
        command: whose program to plan, "train", "sample" or "embed".
        batch_size: prompts or captions at once, except in training.
        quick: whether XLA compiles with little effort: minutes instead of many.
        sampling_axes: axes of the mesh in sampling, such as `{"fsdp": 4}`.

    Returns:
        The plan, JSON-like: bytes on each chip, FLOPs, collectives, bounds of speed; see docs/pods.md.

    Raises:
        ConfigError: the config or the topology cannot work, or arguments contradict each other.
    """
    config = load_config(config)
    if command not in PLANNED_COMMANDS:
        raise unknown_name_error("command", command, PLANNED_COMMANDS)
    axes = SAMPLING_MESH | dict(sampling_axes or {})
    cached_text = command == "train" and bool(config.text.cache)
    request = PlanRequest(command, config, parse_topology(topology), cached_text, batch_size, quick, axes)
    check_request(request)
    if has_compiler():
        return compile_plan(request)
    logger.warning(INSTALL_LIBTPU)
    return plan_without_compiler(request)


def _make_program(request: PlanRequest, mesh: AnyMesh) -> Program:
    """Returns the program of a request. Raises ConfigError if its config is not valid."""
    encoder = abstract_encoder(request.config.text)
    size = padded_size(request.batch_size, num_batch_shards(mesh))
    match request.command:
        case "train":
            return train_program(request.config, mesh, cached_encoder(encoder) if request.cached_text else encoder)
        case "sample":
            return sample_program(request.config, mesh, encoder, size)
        case _:
            return embed_program(mesh, encoder, size)


def plan_without_compiler(request: PlanRequest) -> dict[str, Any]:
    """Returns a plan without compiling: sizes, and the operations that the model needs. Raises ConfigError."""
    mesh = abstract_mesh(request.mesh_axes, request.topology.num_chips)
    return _program_entries(request, mesh, _make_program(request, mesh))


def compile_plan(request: PlanRequest, program_file: Path | None = None) -> dict[str, Any]:
    """Compiles the program for the topology, and returns its plan.

    Args:
        request: what to plan.
        program_file: where to write the compiled program; None for nowhere.

    Raises:
        ConfigError: libtpu does not know the topology, or the config is not valid.
    """
    mesh = make_mesh(request.mesh_axes, topology_devices(request.topology))
    program = _make_program(request, mesh)
    report = _program_entries(request, mesh, program)
    if report["held_bytes_per_chip"] > report["capacity_bytes_per_chip"]:
        return report | {"fits": False, "peak_bytes_per_chip": report["held_bytes_per_chip"]}
    compiled = compile_lowered(program.lower(), report["held_bytes_per_chip"], request.quick)
    report |= _memory_entries(request, compiled)
    if compiled.hlo_text is None:
        return report
    if program_file is not None:
        atomic_write(program_file, compiled.hlo_text.encode())
    return report | _work_entries(request, mesh, program, compiled.hlo_text)


def _program_entries(request: PlanRequest, mesh: AnyMesh, program: Program) -> dict[str, Any]:
    """Returns the entries of a plan that follow from shapes alone."""
    config, chip = request.config, request.topology.chip
    training = {
        "accumulation": config.training.grad_accum_steps,
        "remat": config.training.remat,
        "text": "cached embeddings" if request.cached_text else config.text.model,
    }
    argument_bytes = sum(program.argument_bytes.values())
    return {
        "what": request.command,
        "topology": str(request.topology),
        "chips": request.topology.num_chips,
        "mesh": dict(mesh.shape),
        "examples_per_step": program.batch_size,
        **(training if request.command == "train" else {"text": config.text.model}),
        "params": program.num_params,
        **({"trainable_params": program.num_trainable} if request.command == "train" else {}),
        "model_flops_per_step": program.model_flops,
        "bytes_per_chip": program.argument_bytes,
        **({"gradient_bytes_per_chip": program.gradient_bytes} if request.command == "train" else {}),
        "held_bytes_per_chip": argument_bytes,
        "capacity_bytes_per_chip": chip.hbm_bytes,
        # None: the temporaries are unknown
        "fits": False if argument_bytes > chip.hbm_bytes else None,
        "peak_bytes_per_chip": None,
    }


def _memory_entries(request: PlanRequest, compiled: Compiled) -> dict[str, Any]:
    """Returns the entries of a plan about the compiled program's memory."""
    return {
        "quick": request.quick,
        "compile_s": round(compiled.compile_seconds, 1),
        "compile_processor_s": round(compiled.cpu_seconds, 1),
        # XLA reserves some memory, and refuses programs that need it
        "fits": compiled.hlo_text is not None and compiled.peak_bytes <= request.topology.chip.hbm_bytes,
        "peak_bytes_per_chip": compiled.peak_bytes,
        "temporary_bytes_per_chip": compiled.temporary_bytes,
        "code_bytes_per_chip": compiled.code_bytes,
    }


def _work_entries(request: PlanRequest, mesh: Mesh, program: Program, text: str) -> dict[str, Any]:
    """Returns the entries of a plan about the compiled program's work and its time bounds."""
    chip, chips = request.topology.chip, request.topology.num_chips
    module = hlo.parse_module(text)
    kernels, collectives = hlo_cost.find_kernels(module), hlo_cost.find_collectives(module)
    dcn_bytes = hlo_cost.dcn_bytes(module)
    bounds = time_bounds(kernels, collectives, dcn_bytes, chip_coordinates(list(mesh.devices.flat)), chip)
    executed = chips * sum(kernel.count * kernel.flops for kernel in kernels)

    def mfu(seconds: float) -> float:
        return program.model_flops / (seconds * chips * chip.peak_flops)

    entries = {
        "executed_flops_per_step": executed,
        "executed_over_model_flops": executed / program.model_flops,
        "bytes_accessed_per_chip": sum(kernel.count * kernel.bytes for kernel in kernels),
        "collectives": _collectives_by_kind(collectives),
        "network_bytes_per_chip": dcn_bytes,
        "loops_of_unknown_length": module.unbounded_loops,
        **_bounds_entries(bounds),
        "slowest": _slowest_scopes(kernels, chip),
        "images_per_s_upper_bound": program.batch_size / bounds.step,
        "mfu_upper_bound": mfu(bounds.step),
        "mfu_upper_bound_of_kernels": mfu(max(bounds.kernels, bounds.ici, bounds.dcn)),
    }
    return entries | (_run_entries(request, bounds) if request.command == "train" else {})


def _bounds_entries(bounds: TimeBounds) -> dict[str, float]:
    """Returns the time bounds as entries of a plan."""
    return {
        "compute_s": bounds.compute,
        "hbm_s": bounds.hbm,
        "ici_s": bounds.ici,
        "network_s": bounds.dcn,
        "kernels_s": bounds.kernels,
        "step_s_lower_bound": bounds.step,
    }


def _slowest_scopes(kernels: list[hlo_cost.Kernel], chip: Chip, count: int = 8) -> list[dict[str, Any]]:
    """Returns the JAX scopes with the largest kernel times; indices of blocks are replaced by #."""
    seconds: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        seconds[re.sub(r"\d+", "#", kernel.op_name.rpartition("UNet.backbone/")[2])] += kernel.count * kernel_seconds(
            kernel, chip
        )
    longest = sorted(seconds.items(), key=lambda item: item[1], reverse=True)[:count]
    return [{"place": scope, "seconds": total} for scope, total in longest]


def _run_entries(request: PlanRequest, bounds: TimeBounds) -> dict[str, Any]:
    """Returns the lower bounds of a full training run."""
    days = request.config.training.steps * bounds.step / _SECONDS_PER_DAY
    return {
        "steps": request.config.training.steps,
        "days_lower_bound": days,
        "chip_hours_lower_bound": 24 * days * request.topology.num_chips,
    }


def _collectives_by_kind(collectives: list[hlo_cost.Collective]) -> list[dict[str, Any]]:
    """Returns count and bytes sent per chip of a step's collectives, by kind and group size."""
    totals: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
    for collective in collectives:
        total = totals[collective.kind, collective.groups.shape[1]]
        total[0] += collective.count
        total[1] += collective.count * collective.sent_bytes
    return [
        {"kind": kind, "chips_in_group": members, "count": count, "bytes_sent_per_chip": sent}
        for (kind, members), (count, sent) in sorted(totals.items())
    ]


def check_request(request: PlanRequest) -> None:
    """Raises ConfigError for a request whose fields contradict each other."""
    if request.cached_text and request.command != "train":
        raise ConfigError(f"--cached_text is for training, but --what is {request.command}: leave one of them out")
    if request.sampling_axes != SAMPLING_MESH and request.command != "sample":
        raise ConfigError(
            f"--fsdp and --spatial are for sampling, but --what is {request.command}: training uses config.mesh, and "
            "embedding shards the encoder over all devices of a host"
        )
