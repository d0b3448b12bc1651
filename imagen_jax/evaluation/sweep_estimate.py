"""How long a sweep takes, from timed batches of every program that it runs; these are compiled on the way."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.request import SampleRequest
from imagen_jax.pipelines.texts import Texts
from imagen_jax.stages.stage_sampler import program_key

_FEW, _MORE, _MOST = 2, 4, 10  # steps of the walks that are timed
_LONG = 2.0  # seconds of a walk of few steps, from which on the second walk is shorter


class StageTime(NamedTuple):
    """Seconds of a batch in one stage: those of each step, those of everything else, and those of compiling."""

    step: float
    rest: float
    compiling: float

    def seconds(self, steps: int) -> float:
        """Returns the seconds of a batch with so many steps."""
        return self.rest + steps * self.step


@dataclasses.dataclass(frozen=True)
class SweepEstimate:
    """How long a sweep takes.

    Attributes:
        points: that are not finished.
        images: of each of them.
        sampling: seconds of sampling, those of the stages before included.
        measuring: seconds of metrics.
        programs: that are compiled for the swept stage.
        compiling: seconds that compiling and timing have taken already.
    """

    points: int
    images: int
    sampling: float
    measuring: float
    programs: int
    compiling: float

    @property
    def seconds(self) -> float:
        """Seconds of all that is left."""
        return self.sampling + self.measuring

    def summary(self) -> str:
        """Returns the estimate as a sentence."""
        return (
            f"{self.points} points of {self.images:,} images each take about {format_seconds(self.seconds)}: "
            f"{format_seconds(self.sampling)} of sampling and {format_seconds(self.measuring)} of metrics "
            f"({self.programs} programs of the swept stage were compiled and timed in {format_seconds(self.compiling)})"
        )


class StageTimer:
    """Times batches of the stages of a pipeline; each program once.

    Args:
        prompts: of one batch.
        batch_size: as in the sweep.

    Attributes:
        images: of the last batch of each stage that was timed.
    """

    def __init__(self, prompts: Sequence[str], batch_size: int) -> None:
        self._request = SampleRequest(Texts(prompts), batch_size=batch_size)
        self._times: dict[tuple[int, Hashable], StageTime] = {}
        self.images: dict[int, np.ndarray] = {}

    @property
    def compiling(self) -> float:
        """Seconds that compiling and timing have taken."""
        return sum(times.compiling for times in self._times.values())

    def programs(self, index: int) -> int:
        """Returns how many programs a stage has."""
        return sum(stage == index for stage, _ in self._times)

    def batch_seconds(self, pipeline: ImagenPipeline, indices: Sequence[int]) -> float:
        """Returns the seconds of a batch in some stages of a pipeline, with its settings."""
        total = 0.0
        for index in indices:
            settings = pipeline.stages[index].stage.config.sampling
            key = (index, program_key(settings))
            if key not in self._times:
                self._times[key] = self._time(pipeline, index)
            total += self._times[key].seconds(settings.num_inference_steps)
        return total

    def _time(self, pipeline: ImagenPipeline, index: int) -> StageTime:
        """Returns the times of a stage: of two walks, as steps are arguments of its programs."""

        def walk(steps: int) -> float:
            changes = [{"num_inference_steps": steps} if i == index else {} for i in range(len(pipeline.stages))]
            short = pipeline.with_settings(changes)
            short.set_progress_bar_config(disable=True)
            start = time.perf_counter()
            (self.images[index],) = short.sample_all(request)
            return time.perf_counter() - start

        shape = pipeline.stages[index].stage.low_res_shape if index else ()
        low_res = np.zeros((len(self._request.texts.prompts), *shape), np.float32) if index else None
        request = dataclasses.replace(self._request, low_res=low_res, first_stage=index, last_stage=index)
        first = walk(_FEW)
        few = walk(_FEW)
        steps = _MORE if few > _LONG else _MOST
        more = walk(steps)
        step = max(0.0, (more - few) / (steps - _FEW))
        return StageTime(step, max(0.0, few - _FEW * step), first + few + more)


def timed(function: Callable[[], object]) -> float:
    """Returns how many seconds a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def format_seconds(seconds: float) -> str:
    """Returns a duration to read, such as "45 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
