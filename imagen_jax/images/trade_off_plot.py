"""A plot of two metrics that disagree, for several settings: curves, and the points that are optimal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import colormaps
from matplotlib.axes import Axes

from imagen_jax.images.plots import finish_axes, make_figure, save_figure

_LINES = ("-", "--", ":", "-.")


class TradeOffPoint(NamedTuple):
    """One setting.

    Attributes:
        gain: of which more is better.
        cost: of which less is better.
        interval: (low, high) of the gain.
        series: index of its curve.
        mark: text beside it; empty for none.
        is_optimal: whether no other point is better in both.
    """

    gain: float
    cost: float
    interval: tuple[float, float]
    series: int
    mark: str
    is_optimal: bool


def plot_trade_offs(
    panels: Mapping[tuple[str, str], Sequence[TradeOffPoint]], series: Sequence[str], title: str, path: Path
) -> None:
    """Plots settings by two metrics to a PNG file, with a panel for each pair.

    Args:
        panels: points by the labels of gain and cost.
        series: the names of the curves.
        title: of the figure.
        path: the file to write.
    """
    figure, all_axes = make_figure(len(panels), title)
    for axes, ((gain, cost), points) in zip(all_axes, panels.items(), strict=False):
        _plot(axes, points, series)
        finish_axes(axes, xlabel=f"{gain} (more is better)", ylabel=f"{cost} (less is better)")
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    save_figure(figure, path)


def _plot(axes: Axes, points: Sequence[TradeOffPoint], series: Sequence[str]) -> None:
    colors = colormaps["tab10"].resampled(10)
    for index, name in enumerate(series):
        own = [point for point in points if point.series == index]
        gains, costs = [point.gain for point in own], [point.cost for point in own]
        spreads = [[p.gain - p.interval[0] for p in own], [p.interval[1] - p.gain for p in own]]
        style: Any = {"color": colors(index % 10), "linestyle": _LINES[index // 10 % len(_LINES)]}
        axes.errorbar(gains, costs, xerr=spreads, marker=".", elinewidth=0.6, linewidth=1, label=name or None, **style)
    front = sorted((point for point in points if point.is_optimal), key=lambda point: point.gain)
    label = "Pareto-optimal" if front else None
    axes.plot([p.gain for p in front], [p.cost for p in front], color="black", linewidth=6, alpha=0.12)
    axes.plot([p.gain for p in front], [p.cost for p in front], "o", mfc="none", mec="black", ms=9, label=label)
    for point in front:
        axes.annotate(point.mark, (point.gain, point.cost), (6, 5), textcoords="offset points", fontsize="small")
