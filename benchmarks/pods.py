"""The tables of docs/pods.md, from the plans in docs/plans: ``python -m benchmarks.pods`` compiles nothing.

``python -m benchmarks.pods make`` first makes the plans that are missing, one after the other; that takes libtpu, and
many minutes each. ``make NAME …`` makes those alone, anew.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

PLANS = Path(__file__).parent.parent / "docs" / "plans"
GIB = 2**30

# By kind of TPU: 256 chips for the base and 128 for super-resolution, as of the paper, and one host.
PODS = {"v4": "v4:8x8x4", "v5e": "v5e:16x16", "v5p": "v5p:4x8x8", "v6e": "v6e:16x16"}
HALVES = {"v4": "v4:4x4x8", "v5e": "v5e:8x16", "v5p": "v5p:4x4x8", "v6e": "v6e:8x16"}
HOSTS = {"v4": "v4:2x2x1", "v5e": "v5e:2x4", "v5p": "v5p:2x2x1", "v6e": "v6e:2x4"}
BASE, SR_256, SR_1024 = (f"configs/imagen_{name}.py" for name in ("base_64", "sr_256", "sr_1024"))
# the same work for each chip; on 256 it is base_v4
WEAK = {8: "v4:2x2x2", 16: "v4:2x2x4", 32: "v4:2x4x4", 64: "v4:4x4x4", 128: "v4:4x4x8"}
DOTS = "--config.training.remat=dots"


def runs() -> dict[str, str]:
    """What is asked of the plan command, by the name of the plan."""
    asked = {f"base_{kind}": f"--config={BASE} --topology={pod} --cached_text {DOTS}" for kind, pod in PODS.items()}
    asked["base_v5p"] = asked["base_v5p"].removesuffix(f" {DOTS}")
    asked["base_scanned_v4"] = f"{asked['base_v4']} --config.model.scan_blocks=True"
    for name, config in (("sr_256", SR_256), ("sr_1024", SR_1024)):
        for kind, pod in HALVES.items():
            asked[f"{name}_{kind}"] = f"--config={config} --topology={pod} --cached_text {DOTS}"
    asked["base_with_t5_v4"] = f"--config={BASE} --topology={PODS['v4']} {DOTS}"
    for kind, host in HOSTS.items():
        asked[f"embed_{kind}"] = f"--config={BASE} --topology={host} --what=embed --batch_size=1024"
    for name, config in (("base", BASE), ("sr_256", SR_256), ("sr_1024", SR_1024)):
        asked[f"sample_{name}_v4"] = f"--config={config} --topology={HOSTS['v4']} --what=sample --batch_size=16"
        asked[f"sample_{name}_v5e"] = (
            f"--config={config} --topology={HOSTS['v5e']} --what=sample --batch_size=16 --fsdp=8"
        )
    for chips, pod in WEAK.items():
        batch = f"--config.training.batch_size={8 * chips}"
        asked[weak_name(chips)] = f"--config={BASE} --topology={pod} --cached_text {DOTS} {batch}"
    quick = {name: f"{flags} --quick" for name, flags in asked.items()}
    return quick | {"base_v4_full": asked[weak_name(128)]}


def make(names: Sequence[str]) -> None:
    """Makes plans; those that are missing, if none is named."""
    asked = runs()
    for name in names or [name for name in asked if not (PLANS / f"{name}.json").exists()]:
        print(f"== {name}: {asked[name]}", flush=True)
        command = [sys.executable, "-m", "imagen_jax.plan", *shlex.split(asked[name]), f"--json={PLANS / name}.json"]
        subprocess.run(command, check=True)


def plans() -> dict[str, dict[str, Any]]:
    """The plans that there are, by name."""
    found = {path.stem: json.loads(path.read_text()) for path in PLANS.glob("*.json")}
    return {name: found[name] for name in runs() if name in found}


COLUMNS = (
    "plan",
    "TPU",
    "mesh",
    "examples a step",
    "fits",
    "GiB a chip",
    "executed / model",
    "compute ms",
    "memory ms",
    "interconnect ms",
    "of peak",
    "kernels ms",
    "of peak",
    "examples/s",
    "days",
    "compiled",
)


def cells(name: str, plan: dict[str, Any]) -> list[str]:
    """A plan's line of the table; what is not known of one that does not fit is left open."""
    mesh = " × ".join(str(size) for axis, size in plan["mesh"].items() if axis != "spatial" or size > 1)
    peak, capacity = (plan[f"{kind}_bytes_per_chip"] / GIB for kind in ("peak", "capacity"))
    said = [f"`{name}`", plan["topology"], mesh, f"{plan['examples_per_step']:,}", "yes" if plan["fits"] else "**no**"]
    said.append(f"{peak:.1f} of {capacity:.0f}")
    if "step_s_lower_bound" in plan:
        compute, memory, interconnect, kernels = (
            f"{plan[f'{kind}_s'] * 1e3:,.0f}" for kind in ("compute", "hbm", "ici", "kernels")
        )
        at_once, one_by_one = f"{plan['mfu_upper_bound']:.0%}", f"{plan['mfu_upper_bound_of_kernels']:.0%}"
        said += [f"{plan['executed_over_model_flops']:.3f}", compute, memory, interconnect, at_once]
        said += [kernels, one_by_one, f"{plan['images_per_s_upper_bound']:,.0f}"]
    else:
        said += [""] * 8
    said.append(f"{plan['days_lower_bound']:,.1f}" if "days_lower_bound" in plan else "")
    effort = "quick" if plan.get("quick") else "full"
    said.append(f"{effort}, {plan['compile_processor_s']:,.0f} s" if "compile_processor_s" in plan else "")
    return said


def table() -> str:
    """What the plans say, as Markdown."""
    return markdown(COLUMNS, [cells(name, plan) for name, plan in plans().items() if name not in weak_names()[:-1]])


def markdown(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *lines])


def weak_names() -> list[str]:
    """The plans of weak scaling, from the fewest chips to the most."""
    return [*map(weak_name, WEAK), "base_v4"]


def weak_name(chips: int) -> str:
    """The plan of weak scaling on so many chips."""
    return f"weak_{chips:03}"


WEAK_COLUMNS = (
    "chips",
    "mesh",
    "examples a step",
    "GiB sent a chip",
    "interconnect ms",
    "compute ms",
    "of the rate of 8",
)


def weak_table() -> str:
    """What more chips cost the base with 8 examples on each, as Markdown: what is sent, and what is left of the rate.

    The last column holds two bounds of a chip's examples/s against those on the fewest chips: if compute, memory and
    interconnect go on at once, and if nothing is sent while a kernel runs.
    """
    made = plans()
    found = [made[name] for name in weak_names() if name in made]
    seconds = [(plan["step_s_lower_bound"], plan["kernels_s"] + plan["ici_s"]) for plan in found]
    lines = []
    for plan, (at_once, one_by_one) in zip(found, seconds, strict=True):
        sent = sum(one["bytes_sent_per_chip"] for one in plan["collectives"])
        lines.append(
            (
                str(plan["chips"]),
                " × ".join(str(plan["mesh"][axis]) for axis in ("data", "fsdp")),
                f"{plan['examples_per_step']:,}",
                f"{sent / GIB:.2f}",
                f"{plan['ici_s'] * 1e3:.0f}",
                f"{plan['compute_s'] * 1e3:.0f}",
                f"{seconds[0][0] / at_once:.1%}, {seconds[0][1] / one_by_one:.1%}",
            )
        )
    return markdown(WEAK_COLUMNS, lines)


def commands() -> str:
    """The command of every plan."""
    return "\n".join(f"{plan['command']} --json=docs/plans/{name}.json" for name, plan in plans().items())


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        make(sys.argv[2:])
    print(table(), weak_table(), commands(), sep="\n\n")
