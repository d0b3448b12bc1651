"""Tables, and the words and plots of rates with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

Rate = dict[str, float]  # right, total, rate, and its interval from low to high


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def interval(rate: Rate) -> str:
    """A rate with its 95% interval, as text."""
    return f"{rate['rate']:.1%} ({rate['low']:.0%}–{rate['high']:.0%})"


def verdict(before: Rate, after: Rate) -> str:
    """Whether a rate has clearly changed: so far that the intervals do not overlap."""
    if after["low"] > before["high"]:
        return "clearly better"
    return "clearly worse" if after["high"] < before["low"] else "no clear difference"


def change(before: Rate, after: Rate) -> str:
    """A change of a rate, and whether it is a clear one."""
    return f"{before['rate']:.1%} to {after['rate']:.1%} ({verdict(before, after)})"


def changes(pairs: dict[str, tuple[Rate, Rate]]) -> str:
    """Which rates have clearly changed from the first to the second of their pair, and which have not."""
    groups: dict[str, list[str]] = {"clearly better": [], "clearly worse": [], "no clear difference": []}
    for name, (before, after) in pairs.items():
        groups[verdict(before, after)].append(f"{name} ({before['rate']:.1%} to {after['rate']:.1%})")
    return "; ".join(f"{group}: {', '.join(names)}" for group, names in groups.items() if names)


def lines(axes: Axes, x: Sequence[float], rates: Sequence[Rate], label: str, **style: Any) -> None:
    """Rates in per cent over x, with bars for their intervals."""
    middle = [100 * rate["rate"] for rate in rates]
    # at rates of 0 and 1 rounding may take an interval's end beyond the rate
    below = [max(100 * (rate["rate"] - rate["low"]), 0) for rate in rates]
    above = [max(100 * (rate["high"] - rate["rate"]), 0) for rate in rates]
    axes.errorbar(x, middle, yerr=[below, above], marker="o", capsize=3, label=label, **style)
