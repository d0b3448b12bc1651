"""Sweeps in a report: a table for each, and a plot for those whose figures can be compared."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.report.cells import better, figure_cell, metric_name
from imagen_jax.evaluation.report.contents import Sweep
from imagen_jax.evaluation.report.runs import Run
from imagen_jax.evaluation.report.table import LESS, NEITHER, Cell, Row, Table
from imagen_jax.evaluation.report.tables import grouped
from imagen_jax.evaluation.sweep_page import plot_results
from imagen_jax.evaluation.sweep_points import SweepPoint, curve_axis
from imagen_jax.evaluation.sweep_results import SweepResults
from imagen_jax.images.html_page import png_uri

_RUN = "run"  # the setting that tells points of several sweeps apart


class SweepPlot(NamedTuple):
    """A plot of sweeps: its title, and the image as a data URI."""

    title: str
    uri: str


def results_of(run: Run) -> SweepResults:
    """Returns the results of a run's sweep. Raises ConfigError if its points have not the same metrics."""
    sweep = _sweep(run)
    points = [SweepPoint(point.settings) for point in sweep.points]
    rows = [
        {name: {"value": row.value, **row.details} for name, row in point.metrics.items()} for point in sweep.points
    ]
    is_whole = bool(rows and sweep.axes) and all(
        set(row) == set(rows[0]) and set(point.settings) == set(sweep.axes)
        for row, point in zip(rows, points, strict=True)
    )
    if not is_whole:
        raise ConfigError(
            f"{run.path}/sweep.json has no points, or points of different metrics or settings: run imagen sweep again"
        )
    return SweepResults(points, rows, curve_axis(sweep.axes))


def sweep_table(run: Run) -> Table:
    """Returns the points of a sweep; a star is at those that are optimal."""
    sweep, results = _sweep(run), results_of(run)
    optimal = {index for curve in results.curves for index in curve.optimal}
    names = list(results.rows[0])
    rows = []
    for index, (point, values) in enumerate(zip(results.points, sweep.points, strict=True)):
        cells = [_bare(figure_cell(values.metrics[name])) for name in names]
        rows.append(Row(point.label + (" *" if index in optimal else ""), cells, NEITHER))
    columns = [f"{metric_name(name)} {'↓' if better(name) == LESS else '↑'}" for name in names]
    details = [
        f"{metric_name(name)} – " + "; ".join(f"{key}: {detail.text}" for key, detail in figure.details.items())
        for name, figure in ((name, figure_cell(row)) for name, row in sweep.points[0].metrics.items())
    ]
    notes = [f"Stage {sweep.stage}. * No other point is better in both metrics of a pair.", *details]
    return Table(f"Sweep {run.name}", columns, rows, notes)


def _bare(cell: Cell) -> Cell:
    """Returns a cell without what it depends on, which is the same in all of a sweep."""
    return Cell(cell.value, cell.text, cell.spread)


def sweep_plots(runs: Sequence[Run]) -> list[SweepPlot]:
    """Returns plots of the metrics that disagree; sweeps that can be compared share one."""
    plots = []
    for group in grouped(runs, _comparable).values():
        results = _joined(group)
        title = ", ".join(run.name for run in group)
        if results.curves:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "sweep.png"
                plot_results(results, title, file)
                plots.append(SweepPlot(f"Trade-off of {title}", png_uri(file)))
    return plots


def _comparable(run: Run) -> str | None:
    """Returns what has to be equal in sweeps that share a plot: metrics and what they depend on, captions, the axis."""
    if run.sweep is None:
        return None
    results, metrics = results_of(run), run.sweep.points[0].metrics
    details = {
        name: sorted((key, repr(detail.identity)) for key, detail in figure_cell(row).details.items())
        for name, row in metrics.items()
    }
    return repr((results.axis, run.sweep.captions.checksum, details))


def _joined(runs: Sequence[Run]) -> SweepResults:
    """Returns the points of sweeps as those of one, with the run as a setting if there are several."""
    parts = [results_of(run) for run in runs]
    if len(runs) == 1:
        return parts[0]
    points = [
        SweepPoint({_RUN: run.name, **point.settings})
        for run, part in zip(runs, parts, strict=True)
        for point in part.points
    ]
    return SweepResults(points, [row for part in parts for row in part.rows], parts[0].axis)


def _sweep(run: Run) -> Sweep:
    assert run.sweep is not None
    return run.sweep
