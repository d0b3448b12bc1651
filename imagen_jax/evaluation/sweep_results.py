"""The results of a sweep: which points are optimal, as JSON and as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from imagen_jax.config.schema import EvaluationConfig
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.evaluate import check_judge
from imagen_jax.evaluation.figures import LOWER_IS_BETTER
from imagen_jax.evaluation.judges import Judge
from imagen_jax.evaluation.pareto import pareto_optimal
from imagen_jax.evaluation.sweep_points import SweepPoint

_ROUNDING = 1e-9  # of a value
GAINS = ("alignment", "clip_score")  # metrics of which more is better, that say whether images show their texts
_LABELS = {
    "alignment": "alignment",
    "clip_score": "CLIP score",
    "fid": "FID",
    "kid": "KID",
    "fd_lite0": "FD-lite0",
    "kid_lite0": "KID-lite0",
    "cmmd": "CMMD",
}


class Curve(NamedTuple):
    """Two metrics that disagree, and the points that no other one is better than in both."""

    gain: str
    cost: str
    optimal: list[int]


@dataclasses.dataclass(frozen=True)
class SweepResults:
    """The results of the points of a sweep.

    Attributes:
        points: with their settings.
        rows: of each, metrics by name, with their `value`.
        axis: the setting along which points are joined.
    """

    points: Sequence[SweepPoint]
    rows: Sequence[Mapping[str, Mapping[str, Any]]]
    axis: str

    @property
    def curves(self) -> list[Curve]:
        """Every pair of an alignment and a distance."""
        names = list(self.rows[0])
        pairs = [(gain, cost) for gain in GAINS for cost in LOWER_IS_BETTER if gain in names and cost in names]
        return [
            Curve(gain, cost, np.flatnonzero(pareto_optimal(self.values(gain), self.values(cost))).tolist())
            for gain, cost in pairs
        ]

    def values(self, metric: str) -> list[float]:
        """Returns the values of a metric, one for each point."""
        return [row[metric]["value"] for row in self.rows]

    @property
    def series(self) -> list[str]:
        """The curves by their settings, in order."""
        return list(dict.fromkeys(point.series(self.axis) for point in self.points))

    def mark(self, point: SweepPoint) -> str:
        """Returns a point's value of the axis as text."""
        return SweepPoint({self.axis: point.settings[self.axis]}).label.removeprefix(f"{self.axis} ")

    def to_json(self) -> dict[str, Any]:
        """Returns points with their metrics, and for each pair of metrics the names of the optimal points."""
        return {
            "points": [
                {"name": point.name, "settings": dict(point.settings), "metrics": dict(row)}
                for point, row in zip(self.points, self.rows, strict=True)
            ],
            "pareto": [
                {"gain": gain, "cost": cost, "optimal": [self.points[index].name for index in optimal]}
                for gain, cost, optimal in self.curves
            ],
        }

    def table(self) -> str:
        """Returns a table; points that are optimal in any pair are marked by a star."""
        names, optimal = list(self.rows[0]), {index for curve in self.curves for index in curve.optimal}
        width = max(len(point.label) for point in self.points)
        lines = [f"  {'':{width}}" + "".join(f"{metric_label(name):>20}" for name in names)]
        for index, (point, row) in enumerate(zip(self.points, self.rows, strict=True)):
            cells = "".join(f"{format_metric(name, row[name]):>20}" for name in names)
            lines.append(f"{'*' if index in optimal else ' '} {point.label:{width}}{cells}")
        return "\n".join([*lines, "* no other point is better in both metrics of a pair"])


def metric_label(metric: str) -> str:
    """Returns the name of a metric to read."""
    return _LABELS.get(metric, metric.replace("_", " "))


def numbers(figure: Mapping[str, Any]) -> dict[str, float]:
    """Returns the value of a figure, and its interval or deviation; not one that is rounding, as of equal subsets."""
    least = _ROUNDING * abs(figure["value"])
    kept = {key: figure[key] for key in ("std", "error") if figure.get(key, 0.0) > least}
    return {key: figure[key] for key in ("value", "low", "high") if key in figure} | kept


def format_metric(metric: str, figure: Mapping[str, Any]) -> str:
    """Returns a value with its interval or deviation."""
    if metric == "alignment":
        return f"{figure['value']:.1%} ({figure['low']:.1%}–{figure['high']:.1%})"
    spread = next((f" ± {figure[key]:.3g}" for key in ("std", "error") if key in numbers(figure)), "")
    return f"{figure['value']:.5g}{spread}"


def check_metrics(config: EvaluationConfig) -> Judge | None:
    """Returns the judge of a config, None without one. Raises ConfigError if its metrics have no trade-off."""
    judge = check_judge(config)
    names = config.metrics.names
    if judge is None and "clip" not in names:
        raise ConfigError(
            "a sweep needs a metric of alignment, and there is no judge and no CLIP score: set config.judge, or add "
            "clip to the metrics"
        )
    if not set(names) & set(LOWER_IS_BETTER):
        raise ConfigError(
            f"a sweep needs a distance to real images, and the metrics are {', '.join(names) or 'none'}: add one of "
            f"{', '.join(LOWER_IS_BETTER)}"
        )
    return judge
