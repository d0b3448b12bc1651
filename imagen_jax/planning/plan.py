"""Plans: what one program needs on one topology, and how fast it can be there at best."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import ConfigError
from imagen_jax.io.atomic import write_whole
from imagen_jax.parallel import sharding
from imagen_jax.planning import hlo, hlo_cost
from imagen_jax.planning.aot import Compiled, compile_for_chips, devices_of
from imagen_jax.planning.encoders import from_cache, planned_encoder
from imagen_jax.planning.hardware import Chip, Topology
from imagen_jax.planning.programs import AnyMesh, Program, embed_program, sample_program, train_program
from imagen_jax.planning.roofline import Bounds, bounds, kernel_seconds, places_of
from imagen_jax.stages.precompute_text import EMBEDDING_MESH
from imagen_jax.stages.sampling import SAMPLING_MESH

WHATS = ("train", "sample", "embed")
SECONDS_A_DAY = 86_400


@dataclasses.dataclass(frozen=True)
class Question:
    """What a plan is asked for.

    Attributes:
        what: which program, one of WHATS.
        config: the stage's.
        topology: where it is to run.
        cached_text: whether embeddings of captions come with the batch of training, so that no encoder is needed.
        batch_size: prompts or captions at once, where it is not training; filled up to as many for each chip.
        quick: whether XLA is to take little effort.
        sampling_axes: of the mesh that pictures are drawn on.
    """

    what: str
    config: StageConfig
    topology: Topology
    cached_text: bool
    batch_size: int
    quick: bool
    sampling_axes: dict[str, int] = dataclasses.field(default_factory=SAMPLING_MESH.copy)

    @property
    def mesh_axes(self) -> dict[str, int]:
        """The axes of the mesh that the command uses."""
        of_commands = {"train": self.config.mesh.to_dict(), "sample": self.sampling_axes, "embed": EMBEDDING_MESH}
        return of_commands[self.what]


def program_of(question: Question, mesh: AnyMesh) -> Program:
    """The program that a question is about. Raises UsageError where its config cannot work."""
    encoder = planned_encoder(question.config.text)
    parts = sharding.batch_parts(mesh)
    size = math.ceil(question.batch_size / parts) * parts
    match question.what:
        case "train":
            return train_program(question.config, mesh, from_cache(encoder) if question.cached_text else encoder)
        case "sample":
            return sample_program(question.config, mesh, encoder, size)
        case _:
            return embed_program(mesh, encoder, size)


def plan_without_compiler(question: Question) -> dict[str, Any]:
    """What can be said without a compiler: sizes, and the operations that the model needs."""
    mesh = sharding.abstract_mesh(question.mesh_axes, question.topology.chips)
    return of_program(question, mesh, program_of(question, mesh))


def plan(question: Question, program_file: Path | None = None) -> dict[str, Any]:
    """All that can be said, by compiling the program for the topology. Raises UsageError if there is no such one.

    The compiled program is written to ``program_file``, if given.
    """
    mesh = sharding.make_mesh(question.mesh_axes, devices_of(question.topology))
    program = program_of(question, mesh)
    report = of_program(question, mesh, program)
    if report["held_bytes_per_chip"] > report["capacity_bytes_per_chip"]:
        return report | {"fits": False, "peak_bytes_per_chip": report["held_bytes_per_chip"]}
    compiled = compile_for_chips(program.lower(), report["held_bytes_per_chip"], question.quick)
    report |= of_memory(question, compiled)
    if compiled.text is None:
        return report
    if program_file is not None:
        write_whole(program_file, compiled.text.encode())
    return report | of_work(question, mesh, program, compiled.text)


def of_program(question: Question, mesh: AnyMesh, program: Program) -> dict[str, Any]:
    """What follows from shapes alone, as entries of a plan."""
    config, chip = question.config, question.topology.chip
    training = {
        "accumulation": config.training.grad_accum_steps,
        "remat": config.training.remat,
        "text": "cached embeddings" if question.cached_text else config.text.model,
    }
    held = sum(program.held.values())
    return {
        "what": question.what,
        "topology": str(question.topology),
        "chips": question.topology.chips,
        "mesh": dict(mesh.shape),
        "examples_per_step": program.examples,
        **(training if question.what == "train" else {"text": config.text.model}),
        "params": program.params,
        "model_flops_per_step": program.flops,
        "bytes_per_chip": program.held,
        "held_bytes_per_chip": held,
        "capacity_bytes_per_chip": chip.hbm_bytes,
        # what is given does not fit, or it is not known what else is needed
        "fits": False if held > chip.hbm_bytes else None,
        "peak_bytes_per_chip": None,
    }


def of_memory(question: Question, compiled: Compiled) -> dict[str, Any]:
    """What the compiler says of memory, as entries of a plan."""
    return {
        "quick": question.quick,
        "compile_s": round(compiled.seconds, 1),
        "compile_processor_s": round(compiled.processor_seconds, 1),
        # what XLA keeps for itself it does not give away: a program that is larger is refused
        "fits": compiled.text is not None and compiled.peak_bytes <= question.topology.chip.hbm_bytes,
        "peak_bytes_per_chip": compiled.peak_bytes,
        "temporary_bytes_per_chip": compiled.temporary_bytes,
        "code_bytes_per_chip": compiled.code_bytes,
    }


def of_work(question: Question, mesh: Mesh, program: Program, text: str) -> dict[str, Any]:
    """What the compiled program does, as entries of a plan."""
    chip, chips = question.topology.chip, question.topology.chips
    module = hlo.parse(text)
    kernels, collectives = hlo_cost.kernels(module), hlo_cost.collectives(module)
    network_bytes = hlo_cost.network_bytes(module)
    found = bounds(kernels, collectives, network_bytes, places_of(list(mesh.devices.flat)), chip)
    executed = chips * sum(kernel.times * kernel.flops for kernel in kernels)

    def share_of_peak(seconds: float) -> float:
        return program.flops / (seconds * chips * chip.peak_flops)

    entries = {
        "executed_flops_per_step": executed,
        "executed_over_model_flops": executed / program.flops,
        "bytes_accessed_per_chip": sum(kernel.times * kernel.bytes for kernel in kernels),
        "collectives": by_kind(collectives),
        "network_bytes_per_chip": network_bytes,
        "loops_of_unknown_length": module.endless,
        **seconds(found),
        "slowest": slowest(kernels, chip),
        "images_per_s_upper_bound": program.examples / found.step,
        "mfu_upper_bound": share_of_peak(found.step),
        "mfu_upper_bound_of_kernels": share_of_peak(max(found.kernels, found.ici, found.network)),
    }
    return entries | (of_run(question, found) if question.what == "train" else {})


def seconds(found: Bounds) -> dict[str, float]:
    """Bounds as entries of a plan."""
    return {
        "compute_s": found.compute,
        "hbm_s": found.hbm,
        "ici_s": found.ici,
        "network_s": found.network,
        "kernels_s": found.kernels,
        "step_s_lower_bound": found.step,
    }


def slowest(kernels: list[hlo_cost.Kernel], chip: Chip, count: int = 8) -> list[dict[str, Any]]:
    """Where most time goes if one kernel follows the other, by place in the network without the numbers of blocks."""
    spent: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        spent[re.sub(r"\d+", "#", kernel.label.rpartition("UNet.backbone/")[2])] += kernel.times * kernel_seconds(
            kernel, chip
        )
    longest = sorted(spent.items(), key=lambda place: place[1], reverse=True)[:count]
    return [{"place": place, "seconds": total} for place, total in longest]


def of_run(question: Question, found: Bounds) -> dict[str, Any]:
    """What all steps of a config cost at least."""
    days = question.config.training.steps * found.step / SECONDS_A_DAY
    return {
        "steps": question.config.training.steps,
        "days_lower_bound": days,
        "chip_hours_lower_bound": 24 * days * question.topology.chips,
    }


def by_kind(collectives: list[hlo_cost.Collective]) -> list[dict[str, Any]]:
    """Collectives by kind and size of their groups: how many run in a step, and what each chip sends for them."""
    counts: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
    for collective in collectives:
        found = counts[collective.kind, collective.groups.shape[1]]
        found[0] += collective.times
        found[1] += collective.times * collective.sent_bytes
    return [
        {"kind": kind, "chips_in_group": members, "count": count, "bytes_sent_per_chip": sent}
        for (kind, members), (count, sent) in sorted(counts.items())
    ]


def check(question: Question) -> None:
    """Raises UsageError for a question that has no answer."""
    if question.cached_text and question.what != "train":
        raise ConfigError(f"--cached_text is of training, and --what is {question.what}: leave one of them out")
    if question.sampling_axes != SAMPLING_MESH and question.what != "sample":
        raise ConfigError(
            f"--fsdp and --spatial are of drawing, and --what is {question.what}: training has config.mesh instead, "
            "and an encoder is split over all devices of a host"
        )
