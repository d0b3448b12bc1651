"""Samples batches of the images of jobs, in few sizes, and measures how long they take.

An image must not depend on what shares its batch. XLA's programs for a whole batch do not have this property on CPUs:
what an image is rounded to depends on the size of the batch, and on its place in it. There, images are isolated: each
device computes those of a batch one after the other, by operations that are the same for every size and place, so that
sizes can be mixed. On accelerators batches are computed together, all in one size, if a trial before the first job
shows that the place in a batch makes no difference to the bit; else they are isolated, too.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.errors import ConfigError
from imagen_jax.io.checksums import json_digest
from imagen_jax.parallel.batching import padded_size
from imagen_jax.parallel.mesh import num_batch_shards
from imagen_jax.pipelines.image_record import Recorder
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.output_dir import stages_manifest
from imagen_jax.pipelines.request import SamplingProgress
from imagen_jax.serving.adapter_switch import AdapterSwitch, no_adapters
from imagen_jax.serving.plans import (
    JobPlan,
    Program,
    batch_request,
    default_request,
    make_plan,
    num_walks,
    relative_area,
)

_SMOOTHING = 0.2  # share of a new measurement in the running mean
_GUESS_SECONDS = 1.0  # for an image, until one was sampled
_MAX_MANIFESTS = 64
_LONGEST_SECONDS = 5.0  # of a batch of more than the smallest size: other clients wait for it

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SampledImage:
    """An image [H, W, C], the texts of its PNG file by keyword, and whether the safety checker has made it black."""

    image: np.ndarray
    texts: dict[str, str]
    flagged: bool = False


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
        sizes: of batches; the largest alone is used unless images are isolated.
        isolated: whether images are; None to decide as said above.
        lora_path: returns the folder of an adapter that a batch asks for, by its id; raises ConfigError if it is gone.

    Attributes:
        isolated: whether images are.

    Raises:
        ConfigError: a size is not positive.
    """

    def __init__(
        self,
        pipeline: ImagenPipeline,
        sizes: Sequence[int],
        isolated: bool | None = None,
        lora_path: Callable[[str], Path] = no_adapters,
    ) -> None:
        if not sizes or min(sizes) < 1:
            raise ConfigError(f"batch sizes are {list(sizes)}: give one or more sizes of at least 1")
        shards = num_batch_shards(pipeline.mesh)
        self.isolated = pipeline.mesh.devices.flat[0].platform == "cpu" if isolated is None else isolated
        self._all_sizes = sorted({padded_size(size, shards) for size in sizes})
        self.seconds = 0.0  # spent in all
        self.batches = 0
        self.rows = 0  # of all batches, with padding
        self._pipeline = pipeline
        self._adapters = AdapterSwitch(pipeline, lora_path)
        self._default = make_plan(pipeline, default_request(len(pipeline.stages)))
        self._seconds_per_cost: float | None = None
        self._manifests: dict[Any, dict[str, Any]] = {}

    @property
    def sizes(self) -> list[int]:
        """The sizes that are used, in ascending order."""
        return self._all_sizes if self.isolated else self._all_sizes[-1:]

    @property
    def cascade(self) -> str:
        """A digest of the weights and the settings of the cascade."""
        return json_digest(self._manifest(self._default.program, self._pipeline))

    def is_default(self, program: Program) -> bool:
        """Returns whether a program is compiled before the first job."""
        return dataclasses.replace(program, negative=False) == self._default.program

    def cost(self, plan: JobPlan) -> float:
        """Returns the cost of an image, in images of the cascade's own settings."""
        return sum(plan.stage_costs) / sum(self._default.stage_costs)

    def seconds_for(self, cost: float) -> float:
        """Returns how long images take by what was measured."""
        return cost * (_GUESS_SECONDS if self._seconds_per_cost is None else self._seconds_per_cost)

    def choose_size(self, program: Program, cost: float, available: int) -> int:
        """Returns how many of the images that wait for a program to take: the largest size that they fill, or all.

        Args:
            program: of the images.
            cost: of each, see `cost`.
            available: how many wait.
        """
        area = relative_area(program, self._pipeline)
        # images that are larger than the cascade's own are fewer at once, as memory is limited; so are those that take
        # long: few batches are let through between their steps
        allowed = [
            size for size in self.sizes if size * area <= self.sizes[-1] and self._is_short(size, cost)
        ] or self.sizes[:1]
        filled = [size for size in allowed if size <= available]
        return max(filled) if filled else min(available, allowed[0])

    def _is_short(self, size: int, cost: float) -> bool:
        return self._seconds_per_cost is None or self.seconds_for(size * cost) <= _LONGEST_SECONDS

    def warm_up(self, is_wanted: Callable[[], bool]) -> None:
        """Compiles the programs of the cascade's own settings in all sizes; ends early if it is not wanted any more."""
        if not self.isolated and is_wanted() and not self._places_agree():
            logger.warning("images of a batch of %d depend on their places in it: they are isolated", self.sizes[-1])
            self.isolated = True
        for size in self.sizes:
            for _ in range(2):  # the second time measures
                if is_wanted():
                    self._seconds_per_cost = None
                    self.sample([(self._default, 0)] * size, lambda progress: progress.sampling.preview())

    def _places_agree(self) -> bool:
        """Returns whether images of a batch are equal to the bit when their places are others."""
        size = self.sizes[-1]
        request = dataclasses.replace(self._default.request, seeds=list(range(size)))
        plan = dataclasses.replace(self._default, request=request)
        samples = []
        for shift in (0, 1, size // 2):
            order = np.roll(np.arange(size), shift)
            x_hats: dict[int, np.ndarray] = {}

            def keep(progress: BatchProgress, x_hats: dict[int, np.ndarray] = x_hats) -> None:
                x_hats[progress.sampling.stage] = np.asarray(progress.sampling.x_hat)

            self.sample([(plan, int(index)) for index in order], keep)
            samples.append([x_hat[np.argsort(order)] for x_hat in x_hats.values()])
        return all(np.array_equal(*pair) for other in samples[1:] for pair in zip(samples[0], other, strict=True))

    def sample(
        self, rows: Sequence[tuple[JobPlan, int]], callback: Callable[[BatchProgress], object]
    ) -> list[SampledImage]:
        """Samples images as one batch.

        Args:
            rows: plan of the job, with what it edits, and index of the image, of each; plans have the same program.
            callback: called every few steps; an exception that it raises ends the walk. It may sample another batch.

        Raises:
            ConfigError: an adapter of the batch is gone, damaged, or that of another cascade.
        """
        size = min(size for size in self.sizes if size >= len(rows))
        plan, request = rows[0][0], batch_request(rows, size, self.isolated)
        start, others = time.monotonic(), self.seconds
        before = np.cumsum([0.0, *plan.stage_costs]) / sum(plan.stage_costs)
        walks = num_walks(plan.program)
        pipeline = self._adapters.apply(plan.pipeline, plan.program.lora)

        def tell(progress: SamplingProgress) -> None:
            if walks > 1:
                x_hat = progress.x_hat[walks - 1 :: walks]
                progress = dataclasses.replace(progress, count=progress.count // walks, x_hat=x_hat)
            share = before[progress.stage + 1] - before[progress.stage]
            callback(BatchProgress(float(before[progress.stage] + share * progress.step / progress.steps), progress))

        recorder = Recorder(pipeline, request, self._manifest(plan.program, pipeline))
        ((_, stages),) = pipeline.iter_batches(request, callback=tell)
        finished = np.stack([plan.finish(stages[-1][row * walks + walks - 1]) for row, (plan, _) in enumerate(rows)])
        checker, flagged = plan.pipeline.safety_checker, np.zeros(len(rows), bool)
        if checker is not None:
            report = checker(finished, size)  # the size of the batch, whose program the warm-up has compiled
            finished, flagged = report.blacken(finished), report.flagged
        # a callback may have sampled other batches
        self._measure(time.monotonic() - start - (self.seconds - others), size, len(rows) * self.cost(plan))
        sampled = []
        for row, (plan, _) in enumerate(rows):
            last, image, is_flagged = row * walks + walks - 1, finished[row], bool(flagged[row])
            record = None if plan.request.edit is None else dataclasses.asdict(plan.request.edit)
            texts = recorder.texts(0, last, image.shape, record, is_flagged)
            sampled.append(SampledImage(image, texts, is_flagged))
        return sampled

    def _manifest(self, program: Program, pipeline: ImagenPipeline) -> dict[str, Any]:
        """Returns which stages a program samples from and how, see `stages_manifest`; those used last are kept."""
        key = program.settings, program.lora
        if key not in self._manifests:
            if len(self._manifests) >= _MAX_MANIFESTS:
                self._manifests.clear()
            self._manifests[key] = stages_manifest(pipeline.stages, pipeline.draft)
        return self._manifests[key]

    def _measure(self, seconds: float, size: int, cost: float) -> None:
        self.seconds += seconds
        self.batches += 1
        self.rows += size
        rate, old = seconds / cost, self._seconds_per_cost
        self._seconds_per_cost = rate if old is None else old + _SMOOTHING * (rate - old)
