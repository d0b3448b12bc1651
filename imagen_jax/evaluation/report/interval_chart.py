"""Rates of several runs with their intervals, as an SVG that has the colors of the page."""

from __future__ import annotations

from imagen_jax.evaluation.report.table import Cell, Table
from imagen_jax.images.html_page import escape

COLORS = 6  # of the style sheet
_WIDTH, _LEFT, _RIGHT = 760, 270, 20
_STEP, _GAP, _TOP = 13, 9, 14  # a line for each run, between rows, above
_MAX_LABEL = 42  # characters
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


def interval_chart(table: Table) -> str:
    """Returns a chart of the rows with intervals between 0 and 1; "" if there are none."""
    rows = [row for row in table.rows if any(map(_is_rate, row.cells))]
    if not rows:
        return ""
    height_of_row = _STEP * len(table.columns) + _GAP
    bottom = _TOP + height_of_row * len(rows)
    parts = [
        f'<path class="grid" d="M{_x(tick):.1f} {_TOP}V{bottom}"/>'
        f'<text class="tick" x="{_x(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{tick:.0%}</text>'
        for tick in _TICKS
    ]
    for number, row in enumerate(rows):
        top = _TOP + number * height_of_row
        label = row.label if len(row.label) <= _MAX_LABEL else f"{row.label[: _MAX_LABEL - 1]}…"
        middle = top + (height_of_row - _GAP) / 2 + 4
        parts.append(f'<text x="{_LEFT - 12}" y="{middle:.1f}" text-anchor="end">{escape(label)}</text>')
        for index, cell in enumerate(row.cells):
            if cell is not None and _is_rate(cell):
                parts.append(_mark(cell, top + _STEP * (index + 0.5), index, f"{table.columns[index]}, {row.label}"))
    legend = "".join(
        f'<span><i class="dot color{index % COLORS}"></i>{escape(name)}</span>'
        for index, name in enumerate(table.columns)
    )
    return (
        f'<p class="legend">{legend}</p><div class="scroll" tabindex="0"><svg class="chart" viewBox="0 0 {_WIDTH} '
        f'{bottom + 20}" role="img" aria-label="{escape(table.title)}: rates with 95% intervals">{"".join(parts)}'
        "</svg></div>"
    )


def _mark(cell: Cell, y: float, index: int, label: str) -> str:
    """Returns a point with its interval."""
    assert cell.interval is not None
    low, high = (_x(min(max(end, 0.0), 1.0)) for end in cell.interval)
    return (
        f'<g class="color{index % COLORS}"><title>{escape(label)}: {escape(cell.text)} {escape(cell.spread)}</title>'
        f'<path class="whisker" d="M{low:.1f} {y:.1f}H{high:.1f}"/>'
        f'<circle cx="{_x(cell.value):.1f}" cy="{y:.1f}" r="4"/></g>'
    )


def _is_rate(cell: Cell | None) -> bool:
    return cell is not None and cell.interval is not None and cell.text.endswith("%")


def _x(rate: float) -> float:
    return _LEFT + rate * (_WIDTH - _LEFT - _RIGHT)
