"""Reports what evaluations have found: one page, and its tables for a paper."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.report import pictures, tables
from imagen_jax.evaluation.report.page import Section, render_sections
from imagen_jax.evaluation.report.paper import escape_markdown, latex_table, markdown_table
from imagen_jax.evaluation.report.pictures import Picture
from imagen_jax.evaluation.report.runs import Run, read_runs
from imagen_jax.evaluation.report.sweeps import sweep_plots, sweep_table
from imagen_jax.evaluation.report.table import Table
from imagen_jax.io.atomic import atomic_write
from imagen_jax.io.paths import as_path
from imagen_jax.io.uploads import flush_or_warn

_WRITTEN = "written by imagen report"  # at the start of files, which are replaced only if they have it
_LATEX_HEAD = rf"% {_WRITTEN}; needs \usepackage{{booktabs}}, and for accents in names \usepackage[T1]{{fontenc}}"
_KINDS = {
    "rates": "judge",
    "figures": "metrics",
    "benchmark": "prompts",
    "sweep": "sweep",
    "votes": "votes",
    "fairness": "fairness",
    "diagnostics": "diagnostics",
}


@dataclasses.dataclass(frozen=True)
class ReportResult:
    """The result of `report`.

    Attributes:
        runs: names of the runs, as the columns have them.
        tables: titles of the tables, in order.
        files: the page, and its tables in LaTeX and in Markdown.
    """

    runs: tuple[str, ...]
    tables: tuple[str, ...]
    files: tuple[Path, Path, Path]

    def summary(self) -> str:
        """Returns what was written."""
        names = ", ".join(map(str, self.files))
        tables_, runs = len(self.tables), len(self.runs)
        return f"{tables_} table{'s'[: tables_ != 1]} of {runs} run{'s'[: runs != 1]}\nwritten: {names}"


def report(runs: Sequence[str | Path], out: str | Path, *, title: str = "Evaluation") -> ReportResult:
    """Writes all that some runs have of evaluations as one page, and its tables for a paper.

    Runs of the same kind are columns of one table. The best figure of a row is in bold, but only among those that can
    be compared: same network, weights, resizing, settings, number of images, reference and captions; footnotes say in
    what others differ.

    Args:
        runs: folders of `imagen evaluate`, `sweep`, `benchmark_prompts` or `fairness`, folders with what
            `imagen votes --out` has written, or such a JSON file.
        out: the page, FILE.html; FILE.tex and FILE.md are written beside it.
        title: of the page.

    Raises:
        ConfigError: `out` is not named .html or cannot be written, FILE.tex or FILE.md is of someone else, or a run is
            given twice, has nothing to report, or is damaged.
    """
    page = as_path(out)
    if page.suffix != ".html":
        raise ConfigError(f"--out {str(out)!r} is not the name of a page: give one that ends in .html")
    files = (page, page.with_suffix(".tex"), page.with_suffix(".md"))
    _check_files(files[1:])
    found = read_runs([str(run) for run in runs])
    sections = [section for section in _sections(found) if not section.is_empty]
    all_tables = [table for section in sections for table in section.tables]
    sources = [(run.name, str(run.path), ", ".join(_KINDS[kind] for kind in run.kinds())) for run in found]
    texts = (render_sections(title, sources, sections), _latex(all_tables), _markdown(title, all_tables))
    for file, text in zip(files, texts, strict=True):
        try:
            atomic_write(file, text.encode())
        except OSError as error:
            raise ConfigError(f"{file} cannot be written ({error.strerror}): give another --out") from error
    flush_or_warn()
    return ReportResult(tuple(run.name for run in found), tuple(table.title for table in all_tables), files)


def _check_files(files: Sequence[Path]) -> None:
    """Raises ConfigError if a file, which --out does not name, is there and of someone else."""
    for file in files:
        if file.is_file() and _WRITTEN not in file.read_text(errors="replace").partition("\n")[0]:
            raise ConfigError(f"{file} would be replaced, and imagen report has not written it: give another --out")


def _sections(runs: Sequence[Run]) -> list[Section]:
    swept = [run for run in runs if run.sweep]
    sample_grids = [picture for run in runs for picture in pictures.grids(run)]
    optimal = [
        (f"{run.name}: {label}, Pareto-optimal", [Picture("", uri) for uri in uris])
        for run in swept
        for label, uris in pictures.point_images(run)
    ]
    return [
        Section("Alignment", tables.judge_tables(runs)),
        Section("Metrics", tables.metric_tables(runs)),
        Section("Prompts", tables.benchmark_tables(runs), pictures=_prompts(runs, "benchmark")),
        Section(
            "Sweeps",
            [sweep_table(run) for run in swept],
            [Picture(plot.title, plot.uri) for plot in sweep_plots(swept)],
            optimal,
        ),
        Section("Votes", tables.vote_tables(runs)),
        Section("Fairness", tables.fairness_tables(runs), pictures=_prompts(runs, "fairness")),
        Section("Samples", plots=sample_grids),
        Section(
            "Diagnostics",
            tables.diagnostic_tables(runs),
            [plot for run in runs for plot in pictures.diagnostic_plots(run)],
        ),
    ]


def _prompts(runs: Sequence[Run], kind: str) -> list[tuple[str, list[Picture]]]:
    """Returns the images of prompts of runs of a kind."""
    rows = [(run.name, pictures.prompt_images(run)) for run in runs if getattr(run, kind)]
    return [(name, shown) for name, shown in rows if shown]


def _latex(shown: Sequence[Table]) -> str:
    return "\n\n".join([_LATEX_HEAD, *map(latex_table, shown)]) + "\n"


def _markdown(title: str, shown: Sequence[Table]) -> str:
    return "\n\n".join([f"<!-- {_WRITTEN} -->", f"## {escape_markdown(title)}", *map(markdown_table, shown)]) + "\n"
