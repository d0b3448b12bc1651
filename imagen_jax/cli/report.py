"""Report evaluations on one page: `imagen report --runs=runs/scores,runs/sweep,runs/votes.json --out=runs/report.html`.

Reads what `imagen evaluate`, `sweep`, `benchmark_prompts`, `fairness` and `votes --out` have written, whatever of it is
in each folder. Runs of the same kind stand side by side; the best of what can be compared is in bold, and footnotes say
in what other figures differ. Writes a page in one file, with plots and images, and beside it `report.tex` and
`report.md`, its tables for a paper.
"""

from __future__ import annotations

from absl import flags

from imagen_jax.cli.flags import CommandFlags, define_path


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    define_path(values, "runs", None, "Folders or JSON files of evaluations, separated by commas.", separator=",")
    define_path(values, "out", None, "The page to write, FILE.html; FILE.tex and FILE.md are beside it.")
    flags.DEFINE_string("title", "Evaluation", "Of the page.", flag_values=values)


def run(args: CommandFlags) -> None:
    """Writes the report, and prints where it is."""
    from imagen_jax.evaluation.report.report import report

    runs = [name.strip() for name in args.required("runs", "runs/scores,runs/sweep").split(",")]
    out = args.required("out", "runs/report.html")
    print(report([name for name in runs if name], out, title=args.title).summary())
