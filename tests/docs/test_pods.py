"""docs/pods.md agrees with the plans in docs/plans."""

import shlex

import pytest

from benchmarks import pods
from imagen_jax.planning.hardware import CHIPS, parse_topology
from tests.helpers.configs import ROOT


def test_document_is_current():
    document = (ROOT / "docs" / "pods.md").read_text()
    assert pods.format_table() in document
    assert pods.format_weak_scaling_table() in document
    assert pods.format_commands() in document


@pytest.mark.parametrize("name", pods.load_plans())
def test_plan_is_consistent(name):
    plan = pods.load_plans()[name]
    flags = dict(flag.split("=", 1) for flag in shlex.split(plan["command"]) if flag.startswith("--") and "=" in flag)
    topology = parse_topology(flags["--topology"])
    assert str(topology) == plan["topology"]
    assert plan["chips"] == topology.num_chips
    assert plan["capacity_bytes_per_chip"] == CHIPS[topology.generation].hbm_bytes
    assert sum(plan["bytes_per_chip"].values()) == plan["held_bytes_per_chip"] <= plan["peak_bytes_per_chip"]
    if "step_s_lower_bound" in plan:
        seconds = [plan[f"{kind}_s"] for kind in ("compute", "hbm", "ici", "network")]
        assert plan["step_s_lower_bound"] == max(seconds) <= plan["kernels_s"] + sum(seconds[2:])
        peak = plan["chips"] * topology.chip.peak_flops
        assert plan["mfu_upper_bound"] == pytest.approx(
            plan["model_flops_per_step"] / plan["step_s_lower_bound"] / peak
        )
