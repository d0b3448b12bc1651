"""Cells of tables from what files have: rates, means and figures, with what they depend on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imagen_jax.evaluation.figures import LOWER_IS_BETTER
from imagen_jax.evaluation.report.contents import FigureRow, Mean, Rate
from imagen_jax.evaluation.report.table import LESS, MORE, Cell, Detail
from imagen_jax.evaluation.sweep_results import metric_label, numbers

_SPREADS = ("std", "error")
_SHOWN_DIGITS = 12  # of checksums
_ORIGINS = ("images", "reference", "captions")  # what notes have last
_NO_DETAILS = ("low", "high", "total", *_SPREADS)


def better(metric: str) -> int:
    """Returns which values of a metric are better."""
    return LESS if metric in LOWER_IS_BETTER else MORE


def rate_cell(row: Rate, details: Mapping[str, Detail] | None = None) -> Cell:
    """Returns a rate with its interval."""
    return Cell(row.rate, f"{row.rate:.1%}", _percents(row.low, row.high), (row.low, row.high), details or {})


def _percents(low: float, high: float) -> str:
    return f"({100 * low:.1f}–{100 * high:.1f})"


def mean_cell(row: Mean, details: Mapping[str, Detail]) -> Cell:
    """Returns a mean with its interval, if it has one."""
    if row.low is None or row.high is None:
        return Cell(row.mean, f"{row.mean:.4f}", details=details)
    return Cell(row.mean, f"{row.mean:.4f}", f"({row.low:.4f}, {row.high:.4f})", (row.low, row.high), details)


def figure_cell(row: FigureRow) -> Cell:
    """Returns a figure with its interval or deviation, and all that it depends on but the measured images."""
    shown = numbers({"value": row.value, **row.details})
    if "low" in shown and "high" in shown:  # the alignment of a sweep's point
        total = row.details.get("total", 0)
        images = {"images": Detail(total, f"{total:,}")}
        interval = (shown["low"], shown["high"])
        return Cell(row.value, f"{row.value:.1%}", _percents(*interval), interval, images)
    spread = next((f"± {shown[key]:.3g}" for key in _SPREADS if key in shown), "")
    return Cell(row.value, f"{row.value:.5g}", spread, details=figure_details(row.details))


def figure_details(details: Mapping[str, Any]) -> dict[str, Detail]:
    """Returns what a figure depends on: network and weights, resizing, settings, images, reference and captions."""
    found = {}
    for name, value in details.items():
        if name in ("network", *_NO_DETAILS):
            continue
        if name == "weights":
            found["network"] = Detail((details.get("network"), value), f"{details.get('network')} ({value})")
        elif name == "images":
            count = value.get("num_images", 0)
            found["images"] = Detail(count, f"{count:,}")
        elif isinstance(value, Mapping):
            found[name] = _origin(value)
        else:
            found[name.replace("_", " ")] = Detail(value, str(value) if value != "" else "none")
    return dict(sorted(found.items(), key=lambda item: _ORIGINS.index(item[0]) if item[0] in _ORIGINS else -1))


def _origin(value: Mapping[str, Any]) -> Detail:
    """Returns a reference or captions: the same if their checksums are, whatever their names."""
    count, checksum = value.get("num_images", 0), str(value.get("checksum", ""))
    name = f"{value.get('name', '')} ({checksum[:_SHOWN_DIGITS]})"
    return Detail((checksum, count), f"{count:,} images of {name}" if count else name)


def metric_name(metric: str) -> str:
    """Returns the name of a metric, with that of its network."""
    label = metric_label(metric)
    return f"{label.removesuffix(' lite0')}-lite0" if label.endswith(" lite0") else label
