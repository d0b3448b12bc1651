"""Tables, texts and plots of rates with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

Rate = dict[str, float]  # correct, total, rate, and its interval from low to high


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_rate(rate: Rate) -> str:
    """Returns a rate with its 95% interval as text."""
    return f"{rate['rate']:.1%} ({rate['low']:.0%}–{rate['high']:.0%})"


def _verdict(before: Rate, after: Rate) -> str:
    """Returns whether a change of a rate is clear: its intervals do not overlap."""
    if after["low"] > before["high"]:
        return "clearly better"
    return "clearly worse" if after["high"] < before["low"] else "no clear difference"


def format_change(before: Rate, after: Rate) -> str:
    """Returns a change of a rate, and whether it is clear, as text."""
    return f"{before['rate']:.1%} to {after['rate']:.1%} ({_verdict(before, after)})"


def format_changes(pairs: dict[str, tuple[Rate, Rate]]) -> str:
    """Returns the changes of rates (before, after) as text, grouped by whether they are clear."""
    groups: dict[str, list[str]] = {"clearly better": [], "clearly worse": [], "no clear difference": []}
    for name, (before, after) in pairs.items():
        groups[_verdict(before, after)].append(f"{name} ({before['rate']:.1%} to {after['rate']:.1%})")
    return "; ".join(f"{group}: {', '.join(names)}" for group, names in groups.items() if names)


def plot_rates(axes: Axes, x: Sequence[float], rates: Sequence[Rate], label: str, **style: Any) -> None:
    """Plots rates in percent over x, with error bars for their intervals."""
    percent = [100 * rate["rate"] for rate in rates]
    # at rates of 0 and 1 an end of the interval may be beyond the rate by rounding
    below = [max(100 * (rate["rate"] - rate["low"]), 0) for rate in rates]
    above = [max(100 * (rate["high"] - rate["rate"]), 0) for rate in rates]
    axes.errorbar(x, percent, yerr=[below, above], marker="o", capsize=3, label=label, **style)
