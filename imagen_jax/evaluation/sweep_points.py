"""The points of a sweep: all combinations of some values of the sampling settings of one stage."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from imagen_jax.config.schema import SamplingConfig
from imagen_jax.errors import ConfigError, unknown_name_error

GUIDANCE = "guidance_scale"
MAX_POINTS = 1000
_MAX_NAME = 200  # characters of a folder's name
_UNSAFE = re.compile(r"[^A-Za-z0-9_.=,+-]+")


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """What is swept.

    Attributes:
        axes: values by key of a config's `sampling`; all combinations are points.
        stage: index of the stage whose settings these are. Stages before it are sampled once, with their own.
        last_stage: index of the stage whose images are judged and measured; None for the last of the cascade.
    """

    axes: Mapping[str, Sequence[Any]]
    stage: int = 0
    last_stage: int | None = None


@dataclasses.dataclass(frozen=True)
class SweepPoint:
    """One combination.

    Attributes:
        settings: of the stage, by key of a config's `sampling`; those that are swept.
    """

    settings: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The settings as text, such as "guidance_scale 1.5, sampler ddim"."""
        return ", ".join(f"{name} {_text(value)}" for name, value in self.settings.items())

    @property
    def name(self) -> str:
        """The settings as the name of a folder, such as "guidance_scale=1.5,sampler=ddim"."""
        return _UNSAFE.sub("-", ",".join(f"{name}={_text(value)}" for name, value in self.settings.items()))

    def series(self, axis: str) -> str:
        """Returns the other settings as text: points that differ in the axis alone are one curve."""
        others = {name: value for name, value in self.settings.items() if name != axis}
        return SweepPoint(others).label


def make_points(axes: Mapping[str, Sequence[Any]]) -> list[SweepPoint]:
    """Returns all combinations, the last axis fastest.

    Args:
        axes: values by key of a config's `sampling`; whether they are in range is seen when a stage gets them.

    Raises:
        ConfigError: a key is not known, has no values or one twice, or there are fewer than two combinations or too
            many.
    """
    for name, values in axes.items():
        if name not in SamplingConfig.model_fields:
            raise unknown_name_error("sampling setting", name, SamplingConfig.model_fields)
        if not values:
            raise ConfigError(f"{name} has no values: give some, or leave it out")
        texts = [_text(value) for value in values]
        for text in texts:
            if texts.count(text) > 1:
                raise ConfigError(f"{name} has {text} twice: give each value once")
    points = [SweepPoint(dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]
    if not 2 <= len(points) <= MAX_POINTS:
        count = len(points) if axes else 0
        raise ConfigError(
            f"a sweep of {count:,} point{'s'[: count != 1]} is asked for, and one has 2 to {MAX_POINTS:,}: give for "
            f"example --sweep={GUIDANCE}=1,2,4"
        )
    if max(len(point.name) for point in points) > _MAX_NAME:
        raise ConfigError(f"{len(axes)} settings are swept, more than the name of a folder holds: sweep fewer at once")
    return points


def curve_axis(axes: Mapping[str, Sequence[Any]]) -> str:
    """Returns along which axis points are joined to curves: guidance, or else the one with the most numbers."""
    if len(axes.get(GUIDANCE, ())) > 1:
        return GUIDANCE
    numbers = {name: sum(isinstance(value, (int, float)) for value in values) for name, values in axes.items()}
    return max(numbers, key=lambda name: numbers[name])


def _text(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "x".join(map(_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)
