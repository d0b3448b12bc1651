"""Rates of several runs with their intervals, as an SVG that has the colors of the page."""

from __future__ import annotations

import math
from typing import NamedTuple

from imagen_jax.evaluation.report.table import Cell, Table
from imagen_jax.images.html_page import escape

COLORS = 6  # of the style sheet
_WIDTH, _SIDE = 460, 18  # as wide as a phone, and room for the text of the first and last tick
_LABEL, _STEP = 17, 12  # a line for the label above the marks, and one for each run
_MAX_LABEL = 64  # characters
_QUARTER = 0.25


class _Axis(NamedTuple):
    """The rates that the chart has."""

    low: float
    high: float

    def x(self, rate: float) -> float:
        inside = min(max(rate, self.low), self.high)
        return _SIDE + (inside - self.low) / (self.high - self.low) * (_WIDTH - 2 * _SIDE)

    def ticks(self) -> list[float]:
        span = self.high - self.low
        count = round(span / (0.05 if span <= _QUARTER else 0.1 if span <= 2 * _QUARTER else _QUARTER))
        return [self.low + span * index / count for index in range(count + 1)]


def interval_chart(table: Table) -> str:
    """Returns a chart of the rows that have rates with intervals; "" if there are none."""
    rows = [row for row in table.rows if any(map(_is_rate, row.cells))]
    if not rows:
        return ""
    axis = _axis([cell for row in rows for cell in row.cells if cell is not None and _is_rate(cell)])
    height_of_row = _LABEL + _STEP * len(table.columns) + 2
    bottom = height_of_row * len(rows) + 4
    parts = [
        f'<path class="grid" d="M{axis.x(tick):.1f} 0V{bottom}"/>'
        f'<text class="tick" x="{axis.x(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{tick:.0%}</text>'
        for tick in axis.ticks()
    ]
    for number, row in enumerate(rows):
        top = number * height_of_row
        label = row.label if len(row.label) <= _MAX_LABEL else f"{row.label[: _MAX_LABEL - 1]}…"
        parts.append(f'<text class="label" x="{_SIDE}" y="{top + _LABEL - 4}">{escape(label)}</text>')
        for index, cell in enumerate(row.cells):
            if cell is not None and _is_rate(cell):
                name = f"{table.columns[index]}, {row.label}"
                parts.append(_mark(cell, axis, top + _LABEL + _STEP * (index + 0.5), index, name))
    legend = "".join(
        f'<span><i class="dot color{index % COLORS}"></i>{escape(name)}</span>'
        for index, name in enumerate(table.columns)
    )
    return (
        f'<p class="legend">{legend}</p><div class="scroll" tabindex="0"><svg class="chart" viewBox="0 0 {_WIDTH} '
        f'{bottom + 20}" role="img" aria-label="{escape(table.title)}: rates with 95% intervals">{"".join(parts)}'
        "</svg></div>"
    )


def _axis(cells: list[Cell]) -> _Axis:
    """Returns the quarters of 0 to 1 that the intervals of some cells are in."""
    ends = [min(max(end, 0.0), 1.0) for cell in cells for end in cell.interval or () if math.isfinite(end)]
    low = min(math.floor(min(ends, default=0.0) / _QUARTER) * _QUARTER, 1 - _QUARTER)
    return _Axis(low, max(math.ceil(max(ends, default=1.0) / _QUARTER) * _QUARTER, low + _QUARTER))


def _mark(cell: Cell, axis: _Axis, y: float, index: int, name: str) -> str:
    """Returns a point with its interval."""
    low, high = cell.interval or (cell.value, cell.value)
    return (
        f'<g class="color{index % COLORS}"><title>{escape(name)}: {escape(cell.text)} {escape(cell.spread)}</title>'
        f'<path class="whisker" d="M{axis.x(low):.1f} {y:.1f}H{axis.x(high):.1f}"/>'
        f'<circle cx="{axis.x(cell.value):.1f}" cy="{y:.1f}" r="4"/></g>'
    )


def _is_rate(cell: Cell | None) -> bool:
    return cell is not None and cell.interval is not None and cell.text.endswith("%") and math.isfinite(cell.value)
