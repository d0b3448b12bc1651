"""What can be changed about a run: to make it fit, or to make it faster; found by trying."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

from imagen_jax.errors import ConfigError
from imagen_jax.models.unet_base import REMAT_POLICIES
from imagen_jax.planning.hardware import Topology
from imagen_jax.planning.plan import Question

Changes = dict[str, Any]  # by key of a config
Planner = Callable[[Question], dict[str, Any]]
# What a search tells of each plan.
KEPT = (
    "fits",
    "peak_bytes_per_chip",
    "step_s_lower_bound",
    "images_per_s_upper_bound",
    "mfu_upper_bound",
    "kernels_s",
    "mfu_upper_bound_of_kernels",
)


def changed(question: Question, changes: Changes) -> Question:
    """The question with other settings in its config."""
    return dataclasses.replace(question, config=question.config.with_changes(changes))


def fsdp_sizes(topology: Topology) -> list[int]:
    """By how many chips parameters can be split: powers of two that divide a slice."""
    whole = math.prod(topology.shape)
    return [2**power for power in range(whole.bit_length()) if whole % 2**power == 0]


def levers(question: Question) -> Iterator[Changes]:
    """Changes that save memory, those that cost least time first; each lever further and further.

    Parameters are split over more chips, the backward pass makes again what is cheap, the batch is cut into
    micro-batches, all is made again; at last the batch itself is made smaller, which changes what is learned.
    """
    config, chips = question.config, question.topology.chips
    now = question.mesh_axes["fsdp"]
    split = chips // max(question.mesh_axes["data"], 1) if now == -1 else now
    for size in fsdp_sizes(question.topology):
        if size > split:
            yield {"mesh.data": -1, "mesh.fsdp": size}
    remats = list(REMAT_POLICIES)[list(REMAT_POLICIES).index(config.training.remat) + 1 :]
    if "dots" in remats:
        yield {"training.remat": "dots"}
    share = config.training.batch_size // chips
    for power in itertools.count(1):
        accumulation = config.training.grad_accum_steps * 2**power
        if share % accumulation:
            break
        yield {"training.grad_accum_steps": accumulation}
    if "full" in remats:
        yield {"training.remat": "full"}
    while share > 1 and share % 2 == 0:
        share //= 2
        yield {"training.batch_size": share * chips}


def what_fits(question: Question, report: dict[str, Any], planner: Planner) -> Iterator[dict[str, Any]]:
    """Tries one lever after another on a run that does not fit, up to the first that makes it fit.

    Args:
        question: the run.
        report: its plan.
        planner: makes the plan of another.

    Yields the changes of each trial with ``fits`` and ``peak_bytes_per_chip``; those that cannot work are left out.
    """
    for changes in levers(question):
        if beyond_hope(report, changes):
            continue
        try:
            trial = planner(changed(question, changes))
        except ConfigError:
            continue
        yield {"changes": changes, "fits": trial["fits"], "peak_bytes_per_chip": trial["peak_bytes_per_chip"]}
        if trial["fits"]:
            return


def beyond_hope(report: dict[str, Any], changes: Changes) -> bool:
    """Whether a lever is not worth a compilation: it does nothing about what a chip is given, and that is too much."""
    return report["held_bytes_per_chip"] > report["capacity_bytes_per_chip"] and "mesh.fsdp" not in changes


def search(question: Question, planner: Planner) -> Iterator[dict[str, Any]]:
    """Plans of meshes, batches and remat: all of them, for what is made again may take less time than to be kept.

    Batches are the config's, half of it and twice as much. Yields changes with the plan's verdict and bounds.

    Raises UsageError if none of them can be planned.
    """
    batch = question.config.training.batch_size
    planned, refused = 0, None  # of those that cannot be planned, why the first cannot
    for fsdp, size in itertools.product(fsdp_sizes(question.topology), (batch, 2 * batch, batch // 2)):
        for remat in REMAT_POLICIES:
            changes = {"mesh.data": -1, "mesh.fsdp": fsdp, "training.batch_size": size, "training.remat": remat}
            try:
                trial = planner(changed(question, changes))
            except ConfigError as error:
                refused = refused or error
                break
            planned += 1
            yield {"changes": changes} | {name: trial.get(name) for name in KEPT}
            if trial["held_bytes_per_chip"] > trial["capacity_bytes_per_chip"]:
                break
    if refused and not planned:
        raise refused


def fastest(trials: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Of trials that fit, that with the most images a second by the sharper bound; None if none fits."""
    fitting = [trial for trial in trials if trial["fits"]]
    return max(fitting, key=lambda trial: trial["mfu_upper_bound_of_kernels"], default=None)
