"""Plans as text."""

from __future__ import annotations

from typing import Any

from imagen_jax.planning.aot import format_gib


def format_plan(plan: dict[str, Any]) -> list[str]:
    """Returns a plan as lines of text, without the values that are unknown."""
    lines = [
        f"{plan['what']} on {plan['topology']}: {plan['chips']} chips, mesh {_format_mesh(plan['mesh'])}, "
        f"batch size {plan['examples_per_step']:,}",
        f"parameters   {_format_params(plan)}; text: {plan['text']}",
        *_format_memory(plan),
        _format_flops(plan),
    ]
    if "executed_flops_per_step" in plan:
        lines += _format_bounds(plan)
    if "days_lower_bound" in plan:
        lines.append(
            f"full run     {plan['steps']:,} steps: at least {plan['days_lower_bound']:,.1f} days, "
            f"{plan['chip_hours_lower_bound']:,.0f} chip-hours"
        )
    if "compile_s" in plan:
        effort = ", with little effort (--quick): memory may be off by 20–40%" if plan["quick"] else ""
        seconds = f"{plan['compile_s']:,.0f} s ({plan['compile_processor_s']:,.0f} s of CPU time)"
        lines.append(f"compiled     in {seconds}{effort}")
    return lines


def _format_params(plan: dict[str, Any]) -> str:
    """Returns the number of parameters, and how many are trained if not all are."""
    total, trained = plan["params"], plan.get("trainable_params", plan["params"])
    return f"{total:,}" if trained == total else f"{total:,}, {trained:,} of them trained"


def _format_memory(plan: dict[str, Any]) -> list[str]:
    """Returns the bytes per chip by kind, and whether they fit."""
    sizes = dict(plan["bytes_per_chip"])
    if "gradient_bytes_per_chip" in plan:
        sizes["gradients (temporary)"] = plan["gradient_bytes_per_chip"]
    if "temporary_bytes_per_chip" in plan:
        sizes["activations, temporaries"] = plan["temporary_bytes_per_chip"]
        sizes["code"] = plan["code_bytes_per_chip"]
    capacity = format_gib(plan["capacity_bytes_per_chip"])
    line = "per chip     " + "; ".join(f"{kind} {format_gib(size)}" for kind, size in sizes.items())
    if plan["fits"] is None:
        return [line, f"of           {capacity}; temporaries are unknown without the compiler"]
    verdict = "FITS" if plan["fits"] else "DOES NOT FIT"
    return [line, f"{verdict}: peak {format_gib(plan['peak_bytes_per_chip'])} of {capacity} per chip"]


def _format_flops(plan: dict[str, Any]) -> str:
    """Returns the model FLOPs, and those that the compiled program executes."""
    line = f"FLOPs        {plan['model_flops_per_step']:.4g} per step of the model"
    if "executed_flops_per_step" not in plan:
        return line
    return f"{line}; {plan['executed_flops_per_step']:.4g} executed ({plan['executed_over_model_flops']:.3f} ×)"


def _format_bounds(plan: dict[str, Any]) -> list[str]:
    """Returns the memory traffic, the communication, and the bounds that follow."""
    collectives = "; ".join(
        f"{kind['count']:,} × {kind['kind']} of {kind['chips_in_group']} ({kind['bytes_sent_per_chip'] / 1e9:,.3f} GB)"
        for kind in plan["collectives"]
    )
    return [
        f"HBM          {plan['bytes_accessed_per_chip'] / 1e9:,.1f} GB read and written per chip",
        f"ICI          sent per chip: {collectives or 'nothing'}",
        f"at least     compute {plan['compute_s']:.4f} s, HBM {plan['hbm_s']:.4f} s, ICI {plan['ici_s']:.4f} s, "
        f"DCN {plan['network_s']:.4f} s; kernels one by one {plan['kernels_s']:.4f} s",
        *(f"  {scope['seconds']:.4f} s in {scope['place']}" for scope in plan["slowest"]),
        f"at most      {plan['images_per_s_upper_bound']:,.1f} examples/s, {plan['mfu_upper_bound']:.1%} MFU "
        f"({plan['mfu_upper_bound_of_kernels']:.1%} with kernels one by one)",
    ]


def _format_mesh(mesh: dict[str, int]) -> str:
    """Returns a mesh as text such as "data=32, fsdp=8"."""
    return ", ".join(f"{axis}={size}" for axis, size in mesh.items())


def format_trial(trial: dict[str, Any]) -> str:
    """Returns a trial of a search as a line of text."""
    changes = " ".join(f"--config.{key}={value}" for key, value in trial["changes"].items())
    line = f"{'fits' if trial['fits'] else 'does not fit'}, {format_gib(trial['peak_bytes_per_chip'])}: {changes}"
    if trial.get("images_per_s_upper_bound"):
        overlapped, sequential = trial["mfu_upper_bound"], trial["mfu_upper_bound_of_kernels"]
        line += f"  (at most {trial['images_per_s_upper_bound']:,.1f} examples/s, {overlapped:.1%} MFU; "
        line += f"{sequential:.1%} with kernels one by one)"
    return line
