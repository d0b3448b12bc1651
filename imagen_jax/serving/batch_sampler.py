"""Samples batches of the images of jobs, in few sizes, and measures how long they take."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from imagen_jax.errors import ConfigError
from imagen_jax.parallel.mesh import num_batch_shards
from imagen_jax.pipelines.image_record import Recorder
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.output_dir import stages_manifest
from imagen_jax.pipelines.request import SamplingProgress
from imagen_jax.serving.plans import JobPlan, Program, batch_request, default_request, make_plan

_SMOOTHING = 0.2  # share of a new measurement in the running mean
_GUESS_SECONDS = 1.0  # for an image, until one was sampled


@dataclasses.dataclass(frozen=True)
class SampledImage:
    """An image [H, W, C] and the texts of its PNG file, by keyword."""

    image: np.ndarray
    texts: dict[str, str]


@dataclasses.dataclass(frozen=True)
class BatchProgress:
    """Where a batch is.

    Attributes:
        fraction: of its work, from 0 to 1.
        sampling: where the pipeline is.
    """

    fraction: float
    sampling: SamplingProgress


class BatchSampler:
    """Samples batches. For one thread.

    Args:
        pipeline: the cascade.
        sizes: of batches.

    Raises:
        ConfigError: a size is not positive.
    """

    def __init__(self, pipeline: ImagenPipeline, sizes: Sequence[int]) -> None:
        if not sizes or min(sizes) < 1:
            raise ConfigError(f"batch sizes are {list(sizes)}: give one or more sizes of at least 1")
        shards = num_batch_shards(pipeline.mesh)
        self.sizes = sorted({-(-size // shards) * shards for size in sizes})
        self.seconds = 0.0  # spent in all
        self.batches = 0
        self.rows = 0  # of all batches, with padding
        self._pipeline = pipeline
        self._default = make_plan(pipeline, default_request(len(pipeline.stages)))
        self._seconds_per_cost: float | None = None

    def cost(self, plan: JobPlan) -> float:
        """Returns the cost of an image, in images of the cascade's own settings."""
        return sum(plan.stage_costs) / sum(self._default.stage_costs)

    def seconds_for(self, cost: float) -> float:
        """Returns how long images take by what was measured."""
        return cost * (_GUESS_SECONDS if self._seconds_per_cost is None else self._seconds_per_cost)

    def choose_size(self, program: Program, available: int) -> int:
        """Returns how many of the images that wait for a program to take: the largest size that they fill, or all."""
        area = math.prod(program.size) / math.prod(self._pipeline.image_size)
        # images that are larger than the cascade's own are fewer at once, as memory is limited
        allowed = [size for size in self.sizes if size * area <= max(self.sizes)] or self.sizes[:1]
        filled = [size for size in allowed if size <= available]
        return max(filled) if filled else min(available, allowed[0])

    def warm_up(self, is_wanted: Callable[[], bool]) -> None:
        """Compiles the programs of the cascade's own settings in all sizes; ends early if it is not wanted any more."""
        for size in self.sizes:
            for _ in range(2):  # the second time measures
                if is_wanted():
                    self._seconds_per_cost = None
                    self.sample([(self._default, 0)] * size, lambda progress: progress.sampling.preview())

    def sample(
        self, rows: Sequence[tuple[JobPlan, int]], callback: Callable[[BatchProgress], object]
    ) -> list[SampledImage]:
        """Samples images as one batch.

        Args:
            rows: plan of the job and index of the image, of each; plans have the same program.
            callback: called every few steps; an exception that it raises ends the walk.
        """
        size = min(size for size in self.sizes if size >= len(rows))
        plan, request, start = rows[0][0], batch_request(rows, size), time.monotonic()
        before = np.cumsum([0.0, *plan.stage_costs]) / sum(plan.stage_costs)

        def tell(progress: SamplingProgress) -> None:
            share = before[progress.stage + 1] - before[progress.stage]
            callback(BatchProgress(float(before[progress.stage] + share * progress.step / progress.steps), progress))

        recorder = Recorder(plan.pipeline, request, stages_manifest(plan.pipeline.stages))
        ((_, stages),) = plan.pipeline.iter_batches(request, callback=tell)
        self._measure(time.monotonic() - start, size, len(rows) * self.cost(plan))
        return [
            SampledImage(stages[-1][row], recorder.texts(0, row, stages[-1][row].shape)) for row in range(len(rows))
        ]

    def _measure(self, seconds: float, size: int, cost: float) -> None:
        self.seconds += seconds
        self.batches += 1
        self.rows += size
        rate, old = seconds / cost, self._seconds_per_cost
        self._seconds_per_cost = rate if old is None else old + _SMOOTHING * (rate - old)
