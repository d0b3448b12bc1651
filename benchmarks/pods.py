"""Print the tables of docs/pods.md from the plans in docs/plans: `python -m benchmarks.pods` compiles nothing.

`python -m benchmarks.pods --make` first makes the missing plans, one after the other; each needs libtpu and many
minutes. `--make --only=NAME,NAME` makes the named plans again.
"""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks import app
from imagen_jax.cli.flags import CommandFlags

PLANS = Path(__file__).parent.parent / "docs" / "plans"
GIB = 2**30

# By TPU generation: 256 chips for the base and 128 for super-resolution, as in the paper, and one host.
PODS = {"v4": "v4:8x8x4", "v5e": "v5e:16x16", "v5p": "v5p:4x8x8", "v6e": "v6e:16x16"}
HALVES = {"v4": "v4:4x4x8", "v5e": "v5e:8x16", "v5p": "v5p:4x4x8", "v6e": "v6e:8x16"}
HOSTS = {"v4": "v4:2x2x1", "v5e": "v5e:2x4", "v5p": "v5p:2x2x1", "v6e": "v6e:2x4"}
BASE, SR_256, SR_1024 = (f"configs/imagen_{name}.py" for name in ("base_64", "sr_256", "sr_1024"))
# DeepFloyd IF's largest stages: sampled on one host, and fine-tuned in full on v4-32, which has 16 chips, and v5e-64.
IF_STAGES = {"if_64": "configs/if_64.py", "if_256": "configs/if_256.py"}
IF_PODS = {"v4": "v4:2x2x4", "v5e": "v5e:8x8"}
IF_ENCODER = "--config.text.model=google/t5-v1_1-xxl"  # what the converted folder has
# a stage of latents, on as many chips
LATENT, LATENT_PODS = "configs/latent_256.py", {"v4": "v4:4x4x4", "v5e": "v5e:8x8"}
# adapters of attention, as diffusers trains them
IF_LORA = (
    "--config.adapter.kind=lora --config.adapter.rank=16 "
    "\"--config.adapter.targets=('to_[qkv]','to_out_0','add_[kv]_proj')\""
)
# Weak scaling, the same work per chip; on 256 chips it is the plan base_v4.
WEAK_SCALING = {8: "v4:2x2x2", 16: "v4:2x2x4", 32: "v4:2x4x4", 64: "v4:4x4x4", 128: "v4:4x4x8"}
DOTS = "--config.training.remat=dots"


def plan_flags() -> dict[str, str]:
    """Returns the flags of `imagen plan` for each plan by its name."""
    by_name = {f"base_{kind}": f"--config={BASE} --topology={pod} --cached_text {DOTS}" for kind, pod in PODS.items()}
    by_name["base_v5p"] = by_name["base_v5p"].removesuffix(f" {DOTS}")
    by_name["base_scanned_v4"] = f"{by_name['base_v4']} --config.model.scan_blocks=True"
    for name, config in (("sr_256", SR_256), ("sr_1024", SR_1024)):
        for kind, pod in HALVES.items():
            by_name[f"{name}_{kind}"] = f"--config={config} --topology={pod} --cached_text {DOTS}"
    by_name["base_with_t5_v4"] = f"--config={BASE} --topology={PODS['v4']} {DOTS}"
    for kind, host in HOSTS.items():
        by_name[f"embed_{kind}"] = f"--config={BASE} --topology={host} --what=embed --batch_size=1024"
    for name, config in (("base", BASE), ("sr_256", SR_256), ("sr_1024", SR_1024)):
        by_name[f"sample_{name}_v4"] = f"--config={config} --topology={HOSTS['v4']} --what=sample --batch_size=16"
        by_name[f"sample_{name}_v5e"] = (
            f"--config={config} --topology={HOSTS['v5e']} --what=sample --batch_size=16 --fsdp=8"
        )
    for name, config in IF_STAGES.items():
        for kind, pod in IF_PODS.items():
            chips = math.prod(map(int, HOSTS[kind].partition(":")[2].split("x")))
            by_name[f"sample_{name}_{kind}"] = (
                f"--config={config} {IF_ENCODER} --topology={HOSTS[kind]} --what=sample --batch_size={chips} "
                f"--fsdp={chips}"
            )
            by_name[f"{name}_{kind}"] = f"--config={config} {IF_ENCODER} --topology={pod}"
            by_name[f"{name}_lora_{kind}"] = f"{by_name[f'{name}_{kind}']} {IF_LORA}"
    for kind, pod in LATENT_PODS.items():
        by_name[f"latent_256_{kind}"] = f"--config={LATENT} --topology={pod} --cached_text"
    for chips, pod in WEAK_SCALING.items():
        batch = f"--config.training.batch_size={8 * chips}"
        by_name[_weak_scaling_name(chips)] = f"--config={BASE} --topology={pod} --cached_text {DOTS} {batch}"
    quick = {name: f"{text} --quick" for name, text in by_name.items()}
    return quick | {"base_v4_full": by_name[_weak_scaling_name(128)]}


def _make_plans(names: Sequence[str]) -> None:
    """Makes the named plans, or the missing ones if none is named."""
    by_name = plan_flags()
    for name in names or [name for name in by_name if not (PLANS / f"{name}.json").exists()]:
        print(f"== {name}: {by_name[name]}", flush=True)
        command = ["imagen_jax", "plan", *shlex.split(by_name[name]), f"--json={PLANS / name}.json"]
        subprocess.run([sys.executable, "-m", *command], check=True)


def load_plans() -> dict[str, dict[str, Any]]:
    """Returns the plans in docs/plans by name."""
    by_stem = {path.stem: json.loads(path.read_text()) for path in PLANS.glob("*.json")}
    return {name: by_stem[name] for name in plan_flags() if name in by_stem}


COLUMNS = (
    "plan",
    "TPU",
    "mesh",
    "batch size",
    "fits",
    "GiB per chip",
    "executed / model FLOPs",
    "compute ms",
    "HBM ms",
    "ICI ms",
    "MFU bound",
    "kernels ms",
    "MFU bound of kernels",
    "examples/s",
    "days",
    "compiled",
)


def _cells(name: str, plan: dict[str, Any]) -> list[str]:
    """Returns a plan's row of the table; values that are unknown because it does not fit are left empty."""
    mesh = " × ".join(str(size) for axis, size in plan["mesh"].items() if axis != "spatial" or size > 1)
    peak, capacity = (plan[f"{kind}_bytes_per_chip"] / GIB for kind in ("peak", "capacity"))
    cells = [f"`{name}`", plan["topology"], mesh, f"{plan['examples_per_step']:,}", "yes" if plan["fits"] else "**no**"]
    cells.append(f"{peak:.1f} of {capacity:.0f}")
    if "step_s_lower_bound" in plan:
        compute, memory, interconnect, kernels = (
            f"{plan[f'{kind}_s'] * 1e3:,.0f}" for kind in ("compute", "hbm", "ici", "kernels")
        )
        overlapped, sequential = f"{plan['mfu_upper_bound']:.0%}", f"{plan['mfu_upper_bound_of_kernels']:.0%}"
        cells += [f"{plan['executed_over_model_flops']:.3f}", compute, memory, interconnect, overlapped]
        cells += [kernels, sequential, f"{plan['images_per_s_upper_bound']:,.0f}"]
    else:
        cells += [""] * 8
    cells.append(f"{plan['days_lower_bound']:,.1f}" if "days_lower_bound" in plan else "")
    effort = "quick" if plan.get("quick") else "full"
    cells.append(f"{effort}, {plan['compile_processor_s']:,.0f} s" if "compile_processor_s" in plan else "")
    return cells


def format_table() -> str:
    """Returns the table of all plans but those of weak scaling, as Markdown."""
    shown = {name: plan for name, plan in load_plans().items() if name not in _weak_scaling_names()[:-1]}
    return _markdown(COLUMNS, [_cells(name, plan) for name, plan in shown.items()])


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows])


def _weak_scaling_names() -> list[str]:
    """Returns the names of the plans of weak scaling, from the fewest chips to the most."""
    return [*map(_weak_scaling_name, WEAK_SCALING), "base_v4"]


def _weak_scaling_name(chips: int) -> str:
    """Returns the name of the plan of weak scaling on a number of chips."""
    return f"weak_{chips:03}"


WEAK_SCALING_COLUMNS = (
    "chips",
    "mesh",
    "batch size",
    "GiB sent per chip",
    "ICI ms",
    "compute ms",
    "efficiency",
)


def format_weak_scaling_table() -> str:
    """Returns the weak-scaling table of the base with 8 examples per chip, as Markdown.

    The last column has two estimates of the efficiency, a chip's examples/s relative to that on the fewest chips: if
    compute, HBM traffic and communication overlap fully, and if nothing is sent while a kernel runs.
    """
    by_name = load_plans()
    plans = [by_name[name] for name in _weak_scaling_names() if name in by_name]
    seconds = [(plan["step_s_lower_bound"], plan["kernels_s"] + plan["ici_s"]) for plan in plans]
    rows = []
    for plan, (overlapped, sequential) in zip(plans, seconds, strict=True):
        sent = sum(collective["bytes_sent_per_chip"] for collective in plan["collectives"])
        rows.append(
            (
                str(plan["chips"]),
                " × ".join(str(plan["mesh"][axis]) for axis in ("data", "fsdp")),
                f"{plan['examples_per_step']:,}",
                f"{sent / GIB:.2f}",
                f"{plan['ici_s'] * 1e3:.0f}",
                f"{plan['compute_s'] * 1e3:.0f}",
                f"{seconds[0][0] / overlapped:.1%}, {seconds[0][1] / sequential:.1%}",
            )
        )
    return _markdown(WEAK_SCALING_COLUMNS, rows)


def format_commands() -> str:
    """Returns the commands that make the plans, one per line."""
    return "\n".join(f"{plan['command']} --json=docs/plans/{name}.json" for name, plan in load_plans().items())


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    flags.DEFINE_bool("make", False, "Make the missing plans first.", flag_values=values)
    flags.DEFINE_list("only", [], "Names of the plans to make, even if they exist.", flag_values=values)


def run(args: CommandFlags) -> None:
    """Prints the tables and the commands of the plans."""
    if args.make:
        _make_plans(args.only)
    print(format_table(), format_weak_scaling_table(), format_commands(), sep="\n\n")


if __name__ == "__main__":
    app.main(__name__)
