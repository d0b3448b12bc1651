"""Measure a claim of the paper: `python -m benchmarks.claims --claim=guidance --out=runs/claims`.

Trains the stages that it needs, scores them, and writes `OUT/CLAIM.json` with the figures, and `OUT/CLAIM.md` and
`OUT/CLAIM.png` with the results. Run again after a break, it resumes. `python -m benchmarks.claims.document` writes
docs/claims.md from the figures of all claims.
"""

from __future__ import annotations

from absl import flags

from benchmarks import app
from benchmarks.claims.claims import CLAIMS
from benchmarks.claims.experiment import Workspace, describe_machine
from imagen_jax.cli.flags import CommandFlags, define_path
from imagen_jax.io.atomic import atomic_write, write_json


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    flags.DEFINE_enum("claim", None, list(CLAIMS), "The claim to measure.", flag_values=values)
    define_path(values, "out", None, "The folder to train in and to write to.")
    define_path(values, "stages", "runs/demo/base,runs/demo/sr", "Folders of trained stages, from `make demo`.", ",")
    flags.DEFINE_bool(
        "quick", False, "Train and sample very little, to check that everything runs.", flag_values=values
    )


def run(args: CommandFlags) -> None:
    """Measures the claim and prints the results."""
    name = args.required("claim", "guidance")
    work = Workspace(args.output_folder("runs/claims"), args.stage_folders(), args.quick)
    work.check_same_settings()

    claim = CLAIMS[name]
    figures = {"machine": describe_machine()} | claim.measure(work)
    write_json(work.out / f"{name}.json", figures)
    text = f"{claim.summarize(figures)}\n\n{claim.describe(figures)}\n"
    atomic_write(work.out / f"{name}.md", text.encode())
    claim.plot(figures).savefig(work.out / f"{name}.png", dpi=110)
    print(text)
    print(f"written to {work.out / name}.json, .md and .png")


if __name__ == "__main__":
    app.main(__name__)
