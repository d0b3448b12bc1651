"""The tables of docs/pods.md, from the plans in docs/plans: ``python -m benchmarks.pods``. Nothing is compiled."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PLANS = Path(__file__).parent.parent / "docs" / "plans"
GIB = 2**30
COLUMNS = (
    "plan",
    "chips",
    "mesh",
    "examples a step",
    "fits",
    "GiB a chip",
    "executed / model",
    "compute ms",
    "memory ms",
    "interconnect ms",
    "one by one ms",
    "of peak",
    "one by one",
    "examples/s",
    "days",
    "compiled",
)


def plans(beginning: str = "") -> dict[str, dict[str, Any]]:
    """The plans whose file's name begins so, by that name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(PLANS.glob(f"{beginning}*.json"))}


def cells(name: str, plan: dict[str, Any]) -> list[str]:
    """A plan's line of the table; what is not known of one that does not fit is left open."""
    mesh = " × ".join(str(size) for size in plan["mesh"].values())
    said = [
        f"`{name}`",
        str(plan["chips"]),
        mesh,
        f"{plan['examples_per_step']:,}",
        "yes" if plan["fits"] else "**no**",
    ]
    said.append(f"{plan['peak_bytes_per_chip'] / GIB:.1f} of {plan['capacity_bytes_per_chip'] / GIB:.0f}")
    if "step_s_lower_bound" in plan:
        times = (plan[f"{kind}_s"] * 1e3 for kind in ("compute", "hbm", "ici", "kernels"))
        said.append(f"{plan['executed_over_model_flops']:.3f}")
        said.extend(f"{time:,.0f}" for time in times)
        said.extend(f"{plan[share]:.0%}" for share in ("mfu_upper_bound", "mfu_upper_bound_of_kernels"))
        said.append(f"{plan['images_per_s_upper_bound']:,.0f}")
    else:
        said.extend([""] * 8)
    said.append(f"{plan['days_lower_bound']:,.1f}" if "days_lower_bound" in plan else "")
    effort = "quick" if plan.get("quick") else "full"
    said.append(f"{effort}, {plan['compile_processor_s']:,.0f} s" if "compile_processor_s" in plan else "")
    return said


def markdown(rows: Iterable[list[str]], columns: Iterable[str]) -> str:
    """Rows as a table."""
    lines = [list(columns), ["---"] * len(list(columns)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table() -> str:
    """What every plan says."""
    return markdown((cells(name, plan) for name, plan in plans().items()), COLUMNS)


def commands() -> str:
    """The command of every plan, by the name of its file."""
    return "\n".join(f"{plan['command']} --json=docs/plans/{name}.json" for name, plan in plans().items())


if __name__ == "__main__":
    print(table())
    print()
    print(commands())
