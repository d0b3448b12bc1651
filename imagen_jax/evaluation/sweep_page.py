"""The plot and the self-contained HTML page of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imagen_jax.evaluation.sweep_results import SweepResults, format_metric, metric_label, numbers
from imagen_jax.images.html_page import data_script, escape, read_asset, render_page
from imagen_jax.images.trade_off_plot import TradeOffPoint, plot_trade_offs

_ASSETS = Path(__file__).parent / "page"


def plot_results(results: SweepResults, title: str, path: Path) -> None:
    """Plots each pair of metrics to a PNG file."""
    panels = {}
    for gain, cost, optimal in results.curves:
        panels[metric_label(gain), metric_label(cost)] = [
            TradeOffPoint(
                row[gain]["value"],
                row[cost]["value"],
                _ends(row[gain]),
                results.series.index(point.series(results.axis)),
                results.mark(point) if index in optimal else "",
                index in optimal,
            )
            for index, (point, row) in enumerate(zip(results.points, results.rows, strict=True))
        ]
    plot_trade_offs(panels, results.series, title, path)


def render_results(
    results: SweepResults, title: str, notes: Sequence[str], images: Sequence[Sequence[str]], captions: Sequence[str]
) -> str:
    """Returns the page.

    Args:
        results: to show.
        title: of the page.
        notes: lines below it, of unknown origin.
        images: of each point, as `image_uri` returns them; the same captions for all.
        captions: of these images.
    """
    data = {
        "axis": results.axis,
        "series": results.series,
        "captions": list(captions),
        "metrics": {name: {"label": metric_label(name), "rate": name == "alignment"} for name in results.rows[0]},
        "curves": [curve._asdict() for curve in results.curves],
        "points": [
            {
                "label": point.label,
                "mark": results.mark(point),
                "series": results.series.index(point.series(results.axis)),
                "metrics": {name: numbers(figure) for name, figure in row.items()},
                "images": list(shown),
            }
            for point, row, shown in zip(results.points, results.rows, images, strict=True)
        ],
    }
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="note">{"<br>".join(map(escape, notes))}</p>',
        read_asset("sweep.html", _ASSETS),
        f'<h2>All points</h2><div class="scroll">{_html_table(results)}</div>',
        data_script("sweep-data", data),
    ]
    style, script = (read_asset(name, _ASSETS) for name in ("sweep.css", "sweep.js"))
    return render_page(title, "\n".join(body), style=style, script=script)


def _html_table(results: SweepResults) -> str:
    """Returns all points as a table, whose names are buttons."""
    names = list(results.rows[0])
    head = "".join(f"<th>{escape(metric_label(name))}</th>" for name in names)
    optimal = {index for curve in results.curves for index in curve.optimal}
    rows = []
    for index, (point, row) in enumerate(zip(results.points, results.rows, strict=True)):
        cells = "".join(f'<td class="number">{escape(format_metric(name, row[name]))}</td>' for name in names)
        best = "yes" if index in optimal else ""
        button = f'<button type="button">{escape(point.label)}</button>'
        rows.append(f'<tr data-index="{index}"><td>{button}</td>{cells}<td>{best}</td></tr>')
    return f'<table id="points"><tr><th>settings</th>{head}<th>Pareto-optimal</th></tr>{"".join(rows)}</table>'


def _ends(figure: Mapping[str, Any]) -> tuple[float, float]:
    """Returns the interval of a figure; its value twice if it has none."""
    if "low" in figure:
        return figure["low"], figure["high"]
    spread = figure.get("error", 0.0)
    return figure["value"] - spread, figure["value"] + spread
