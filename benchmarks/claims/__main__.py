"""Measure a claim of the paper: ``python -m benchmarks.claims --claim=guidance --out=runs/claims``.

Trains what is needed, scores it, and writes ``OUT/CLAIM.json`` with the figures, ``OUT/CLAIM.md``, what they say, and
``OUT/CLAIM.png``. Stopped and run again, it goes on. ``python -m benchmarks.claims.document`` makes docs/claims.md of
all of them.
"""

from __future__ import annotations

from absl import flags

from benchmarks.claims.claims import CLAIMS
from benchmarks.claims.experiment import Workplace, machine
from imagen_jax import commands
from imagen_jax.io.atomic import write_json, write_whole

CLAIM = flags.DEFINE_enum("claim", None, list(CLAIMS), "What to measure.")
OUT = flags.DEFINE_string("out", None, "The folder to train in and to write to.")
STAGES = flags.DEFINE_string("stages", "runs/demo/base,runs/demo/sr", "Folders of trained stages, as of make demo.")
QUICK = flags.DEFINE_bool("quick", False, "Train and draw next to nothing, to see that everything runs.")


def main() -> None:
    """Measures the claim of the flags."""
    name = commands.required(CLAIM.value, "claim", "guidance")
    folders = commands.stage_folders(STAGES.value)
    work = Workplace(commands.writable_folder(OUT.value, "out", "runs/claims"), folders, QUICK.value)
    work.check_begun_alike()

    claim = CLAIMS[name]
    figures = {"machine": machine()} | claim.measure(work)
    write_json(work.out / f"{name}.json", figures)
    told = f"{claim.find(figures)}\n\n{claim.tell(figures)}\n"
    write_whole(work.out / f"{name}.md", told.encode())
    claim.plot(figures).savefig(work.out / f"{name}.png", dpi=110)
    print(told)
    print(f"{work.out / name}.json, .md and .png have these figures")


if __name__ == "__main__":
    commands.run(main)
