"""Searches for changes of a config that make a run fit or make it faster, by planning each of them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

from imagen_jax.errors import ConfigError
from imagen_jax.models.unet_base import REMAT_POLICIES
from imagen_jax.planning.hardware import Topology
from imagen_jax.planning.plan import PlanRequest

Changes = dict[str, Any]  # config keys to values
Planner = Callable[[PlanRequest], dict[str, Any]]
# The entries of each plan that a search reports.
_REPORTED = (
    "fits",
    "peak_bytes_per_chip",
    "step_s_lower_bound",
    "images_per_s_upper_bound",
    "mfu_upper_bound",
    "kernels_s",
    "mfu_upper_bound_of_kernels",
)


def with_changes(request: PlanRequest, changes: Changes) -> PlanRequest:
    """Returns a request with changes of its config."""
    return dataclasses.replace(request, config=request.config.with_changes(changes))


def _fsdp_sizes(topology: Topology) -> list[int]:
    """Returns the sizes of fsdp to try: powers of two that divide the chips of a slice."""
    chips = math.prod(topology.shape)
    return [2**power for power in range(chips.bit_length()) if chips % 2**power == 0]


def _memory_knobs(request: PlanRequest) -> Iterator[Changes]:
    """Yields changes that save memory, those that cost the least time first, each knob further and further.

    In this order: more FSDP, rematerialization of cheap operations, gradient accumulation, full rematerialization, and
    at last a smaller batch, which changes the training.
    """
    config, chips = request.config, request.topology.num_chips
    fsdp = request.mesh_axes["fsdp"]
    fsdp = chips // max(request.mesh_axes["data"], 1) if fsdp == -1 else fsdp
    for size in _fsdp_sizes(request.topology):
        if size > fsdp:
            yield {"mesh.data": -1, "mesh.fsdp": size}
    remats = list(REMAT_POLICIES)[list(REMAT_POLICIES).index(config.training.remat) + 1 :]
    if "dots" in remats:
        yield {"training.remat": "dots"}
    batch_per_chip = config.training.batch_size // chips
    for power in itertools.count(1):
        accumulation = config.training.grad_accum_steps * 2**power
        if batch_per_chip % accumulation:
            break
        yield {"training.grad_accum_steps": accumulation}
    if "full" in remats:
        yield {"training.remat": "full"}
    while batch_per_chip > 1 and batch_per_chip % 2 == 0:
        batch_per_chip //= 2
        yield {"training.batch_size": batch_per_chip * chips}


def search_fit(request: PlanRequest, plan: dict[str, Any], planner: Planner) -> Iterator[dict[str, Any]]:
    """Tries changes of a run that does not fit, until one of them makes it fit.

    Args:
        request: the run.
        plan: its plan.
        planner: returns the plan of another request.

    Yields:
        For each trial its changes, `fits` and `peak_bytes_per_chip`; invalid configs are left out.
    """
    for changes in _memory_knobs(request):
        if _cannot_help(plan, changes):
            continue
        try:
            trial = planner(with_changes(request, changes))
        except ConfigError:
            continue
        yield {"changes": changes, "fits": trial["fits"], "peak_bytes_per_chip": trial["peak_bytes_per_chip"]}
        if trial["fits"]:
            return


def _cannot_help(plan: dict[str, Any], changes: Changes) -> bool:
    """Returns whether the arguments alone do not fit and the changes do not make them smaller."""
    return plan["held_bytes_per_chip"] > plan["capacity_bytes_per_chip"] and "mesh.fsdp" not in changes


def search_fastest(request: PlanRequest, planner: Planner) -> Iterator[dict[str, Any]]:
    """Plans all combinations of mesh, batch size and remat.

    Rematerialization is tried even where it is not needed: it can be faster than to store activations. Batch sizes are
    the config's, half and twice of it.

    Yields:
        For each trial its changes, and the verdict and bounds of its plan.

    Raises:
        ConfigError: none of the combinations can be planned.
    """
    batch = request.config.training.batch_size
    planned, first_error = 0, None
    for fsdp, size in itertools.product(_fsdp_sizes(request.topology), (batch, 2 * batch, batch // 2)):
        for remat in REMAT_POLICIES:
            changes = {"mesh.data": -1, "mesh.fsdp": fsdp, "training.batch_size": size, "training.remat": remat}
            try:
                trial = planner(with_changes(request, changes))
            except ConfigError as error:
                first_error = first_error or error
                break
            planned += 1
            yield {"changes": changes} | {name: trial.get(name) for name in _REPORTED}
            if trial["held_bytes_per_chip"] > trial["capacity_bytes_per_chip"]:
                break
    if first_error and not planned:
        raise first_error


def select_fastest(trials: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the trial that fits and has the highest MFU with kernels one by one; None if no trial fits."""
    fitting = [trial for trial in trials if trial["fits"]]
    return max(fitting, key=lambda trial: trial["mfu_upper_bound_of_kernels"], default=None)
