"""A plan as lines for people."""

from __future__ import annotations

from typing import Any

from imagen_jax.planning.aot import in_gib


def lines(report: dict[str, Any]) -> list[str]:
    """What a plan says, with what is not known left out."""
    said = [
        f"{report['what']} on {report['topology']}: {report['chips']} chips, mesh {settings(report['mesh'])}, "
        f"{report['examples_per_step']:,} examples a step",
        f"parameters   {report['params']:,}; text: {report['text']}",
        *memory(report),
        operations(report),
    ]
    if "executed_flops_per_step" in report:
        said += work(report)
    if "days_lower_bound" in report:
        said.append(
            f"whole run    {report['steps']:,} steps: {report['days_lower_bound']:,.1f} days, "
            f"{report['chip_hours_lower_bound']:,.0f} chip-hours, at least"
        )
    if "compile_s" in report:
        effort = ", with little effort (--quick): memory may be off by 20–40%" if report["quick"] else ""
        spent = f"{report['compile_s']:,.0f} s ({report['compile_processor_s']:,.0f} s of processors)"
        said.append(f"compiled     in {spent}{effort}")
    return said


def memory(report: dict[str, Any]) -> list[str]:
    """Bytes a chip by kind, and the verdict."""
    kinds = dict(report["bytes_per_chip"])
    if "temporary_bytes_per_chip" in report:
        kinds["activations, temporaries"] = report["temporary_bytes_per_chip"]
        kinds["code"] = report["code_bytes_per_chip"]
    capacity = in_gib(report["capacity_bytes_per_chip"])
    said = ["a chip holds " + "; ".join(f"{kind} {in_gib(size)}" for kind, size in kinds.items())]
    if report["fits"] is None:
        return [*said, f"of           {capacity}; what else it needs only the compiler knows"]
    verdict = "FITS" if report["fits"] else "DOES NOT FIT"
    return [*said, f"{verdict}: {in_gib(report['peak_bytes_per_chip'])} at its peak, of {capacity} a chip"]


def operations(report: dict[str, Any]) -> str:
    """What the model needs, and what the chips do for it."""
    said = f"operations   {report['model_flops_per_step']:.4g} a step, of the model"
    if "executed_flops_per_step" not in report:
        return said
    return f"{said}; {report['executed_flops_per_step']:.4g} executed ({report['executed_over_model_flops']:.3f} ×)"


def work(report: dict[str, Any]) -> list[str]:
    """What is moved and sent, and the bounds that follow."""
    exchanged = "; ".join(
        f"{kind['count']:,} × {kind['kind']} of {kind['chips_in_group']} ({kind['bytes_sent_per_chip'] / 1e9:,.3f} GB)"
        for kind in report["collectives"]
    )
    return [
        f"memory       {report['bytes_accessed_per_chip'] / 1e9:,.1f} GB read and written by each chip",
        f"interconnect each chip sends: {exchanged or 'nothing'}",
        f"at least     compute {report['compute_s']:.4f} s, memory {report['hbm_s']:.4f} s, interconnect "
        f"{report['ici_s']:.4f} s, between slices {report['network_s']:.4f} s; kernels one by one "
        f"{report['kernels_s']:.4f} s",
        *(f"  {place['seconds']:.4f} s in {place['place']}" for place in report["slowest"]),
        f"at best      {report['images_per_s_upper_bound']:,.1f} examples/s, {report['mfu_upper_bound']:.1%} of peak "
        f"({report['mfu_upper_bound_of_kernels']:.1%} with kernels one by one)",
    ]


def settings(values: dict[str, Any]) -> str:
    """``data=32, fsdp=8``."""
    return ", ".join(f"{name}={value}" for name, value in values.items())


def trial_line(trial: dict[str, Any]) -> str:
    """One change that was tried, and what came of it."""
    changes = " ".join(f"--config.{name}={value}" for name, value in trial["changes"].items())
    said = f"{'fits' if trial['fits'] else 'does not fit'}, {in_gib(trial['peak_bytes_per_chip'])}: {changes}"
    if trial.get("images_per_s_upper_bound"):
        at_best, one_by_one = trial["mfu_upper_bound"], trial["mfu_upper_bound_of_kernels"]
        said += f"  ({trial['images_per_s_upper_bound']:,.1f} examples/s, {at_best:.1%} of peak at best; "
        said += f"{one_by_one:.1%} with kernels one by one)"
    return said
