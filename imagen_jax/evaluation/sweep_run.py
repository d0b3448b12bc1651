"""The work of a sweep: what it needs is opened and checked, then timed, then its points are sampled one by one."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.config.load import to_json
from imagen_jax.config.schema import EvaluationConfig
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.evaluate import open_captions
from imagen_jax.evaluation.judges import check_captions
from imagen_jax.evaluation.metric_set import MetricSet, Reference
from imagen_jax.evaluation.references import DataReference, SaveClock, measure_reference, open_reference
from imagen_jax.evaluation.sweep_estimate import StageTimer, SweepEstimate, format_seconds, timed
from imagen_jax.evaluation.sweep_folder import LOW_RES, SHOWN, LowResFiles, SweepFolder
from imagen_jax.evaluation.sweep_page import plot_results, render_results
from imagen_jax.evaluation.sweep_point import PointMetrics
from imagen_jax.evaluation.sweep_points import SweepPlan, SweepPoint, curve_axis, make_points
from imagen_jax.evaluation.sweep_results import SweepResults, check_metrics
from imagen_jax.evaluation.warn_once import metric_warnings_once
from imagen_jax.images.html_page import image_uri
from imagen_jax.io.atomic import atomic_write, write_json
from imagen_jax.io.uploads import flush_or_warn
from imagen_jax.parallel import multihost
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.output_dir import stages_manifest
from imagen_jax.pipelines.request import SampleRequest
from imagen_jax.pipelines.texts import Texts

logger = logging.getLogger(__name__)


class SweepRun:
    """A sweep; every process of a run has one, and the main one has the folder.

    Args:
        pipeline: the cascade.
        config: captions, judge and metrics.
        plan: what is swept.
        out: the folder to write to.
        overwrite: whether results of another sweep are removed from it.

    Raises:
        ConfigError: as `sweep`.
    """

    def __init__(
        self, pipeline: ImagenPipeline, config: EvaluationConfig, plan: SweepPlan, out: Path, overwrite: bool
    ) -> None:
        self._pipeline, self._config, self._plan, self._out = pipeline, config, plan, out
        self._points, self._judge = make_points(plan.axes), check_metrics(config)
        self._last = len(pipeline.stages) - 1 if plan.last_stage is None else plan.last_stage
        self._check_stages()
        for point in self._points:
            self._pipeline_of(point)
        _, self._captions, self._captions_origin = open_captions(config, pipeline)
        if self._judge is not None:
            check_captions(config.judge, self._captions)
        self._metrics = MetricSet.load(config.metrics)
        _ = pipeline.draft  # loaded by all processes, before the main one describes it
        self._folder = SweepFolder(out, self._inputs(), overwrite) if multihost.is_main_process() else None
        self._reference = self._open_reference()
        self._low_res = self._open_low_res()
        self._finished = self._find_finished()
        self._pages: dict[str, list[str]] = {}  # the images of each finished point, as URIs

    def _check_stages(self) -> None:
        """Raises ConfigError if the plan's stages are not in the cascade, or a setting has no effect there."""
        plan, count = self._plan, len(self._pipeline.stages)
        if not 0 <= plan.stage <= self._last < count:
            raise ConfigError(
                f"stage {plan.stage} is swept and the images of stage {self._last} are measured, and the cascade has "
                f"stages 0 to {count - 1}: give one of them, and the same or a later one to measure"
            )
        if "aug_level" in plan.axes and not self._pipeline.stages[plan.stage].stage.is_super_resolution:
            raise ConfigError(
                f"stage {plan.stage} enlarges no images, so that aug_level has no effect: sweep a later one"
            )

    def _pipeline_of(self, point: SweepPoint) -> ImagenPipeline:
        """Returns the cascade with the settings of a point. Raises ConfigError if one is out of range."""
        changes = [dict(point.settings) if i == self._plan.stage else {} for i in range(len(self._pipeline.stages))]
        return self._pipeline.with_settings(changes)

    def _inputs(self) -> dict[str, Any]:
        """Returns all that decides the results of a point, besides its settings, as JSON."""
        try:
            stages = stages_manifest(self._pipeline.stages[: self._last + 1], self._pipeline.draft)
        except FileNotFoundError as error:
            raise ConfigError(
                "a sweep continues with stages of the same checkpoints, and these were not loaded from folders: save "
                "the cascade by save_pretrained, and load it"
            ) from error
        swept = stages[str(self._plan.stage)]
        swept["sampling"] = {key: value for key, value in swept["sampling"].items() if key not in self._plan.axes}
        return {
            "stages": stages,
            "stage": self._plan.stage,
            "config": to_json(self._config),
            "captions": self._captions_origin._asdict(),
            "metrics": self._metrics.identity(),
        }

    def _open_reference(self) -> Reference:
        """Returns what images are compared with, measured if that was not done before."""
        config, (height, width, channels) = self._config, self._pipeline.stages[self._last].stage.image_shape
        data = DataReference(config.data, config.data.split, (height, width), channels, config.num_samples)
        reference = open_reference(self._metrics, config.metrics, data)
        return reference if isinstance(reference, Reference) else measure_reference(self._metrics, reference, self._out)

    def _open_low_res(self) -> LowResFiles | None:
        """Returns the images of the stages before the swept one; None if it is the first."""
        if self._plan.stage == 0:
            return None
        shape = self._pipeline.stages[self._plan.stage - 1].stage.image_shape
        return LowResFiles(self._out / LOW_RES, (self._config.num_samples, *shape), self._config.batch_size)

    def _find_finished(self) -> np.ndarray:
        """Returns which points are finished, bool [points], in every process."""
        finished = np.zeros(len(self._points), bool)
        if self._folder is not None:
            finished = np.array([self._folder.result(point.name) is not None for point in self._points])
        return multihost.broadcast_from_main(finished)

    @functools.cached_property
    def _timer(self) -> StageTimer:
        return StageTimer(self._captions[: self._config.batch_size], self._config.batch_size)

    def estimate(self) -> SweepEstimate | None:
        """Compiles and times every program, and returns how long the points that are left take; None if none is."""
        pending = [point for point, is_finished in zip(self._points, self._finished, strict=True) if not is_finished]
        if not pending:
            return None
        timer, count, swept = self._timer, self._config.num_samples, range(self._plan.stage, self._last + 1)
        batches = -(-count // self._config.batch_size)
        sampling = batches * sum(timer.batch_seconds(self._pipeline_of(point), swept) for point in pending)
        if self._low_res is not None:
            missing = int(self._low_res.pending().sum())
            before = -(-missing // self._config.batch_size)
            sampling += before and before * timer.batch_seconds(self._pipeline, range(self._plan.stage))
        update, result = self._time_metrics()
        measuring = len(pending) * (batches * update + result)
        return SweepEstimate(
            len(pending), count, sampling, measuring, timer.programs(self._plan.stage), timer.compiling
        )

    def _time_metrics(self) -> tuple[float, float]:
        """Returns the seconds that the metrics of a batch take, and those of a point's figures."""
        images = self._timer.images[self._last]
        captions, count = self._captions[: len(images)], len(images)
        PointMetrics(self._judge, self._metrics, count).update(0, images, captions)  # compiles
        metrics = PointMetrics(self._judge, self._metrics, count)
        update = timed(lambda: metrics.update(0, images, captions))
        with metric_warnings_once(is_silent=True):  # of a batch alone
            return update, timed(lambda: metrics.result(self._reference))

    def sample(self) -> None:
        """Samples all points that are not finished, and writes results every now and then."""
        start, clock = time.monotonic(), SaveClock()
        request = SampleRequest(Texts(self._captions), self._config.seed, self._config.batch_size)
        if self._low_res is not None and not self._finished.all():
            self._sample_low_res(request)
        request = dataclasses.replace(
            request, first_stage=self._plan.stage, last_stage=self._last, low_res=self._low_res
        )
        pending = np.flatnonzero(~self._finished).tolist()
        with metric_warnings_once():
            for number, index in enumerate(pending, start=1):
                self._sample_point(self._points[index], request, f"point {number} of {len(pending)}")
                self._finished[index] = True
                left = (time.monotonic() - start) / number * (len(pending) - number)
                logger.info("%s", self._progress(index, number, len(pending), left))
                if multihost.is_main_process():
                    clock.save(self.write)

    def _sample_low_res(self, request: SampleRequest) -> None:
        """Samples the images of the stages before that are missing."""
        assert self._low_res is not None
        before = dataclasses.replace(request, last_stage=self._plan.stage - 1)
        for first, images in self._pipeline.iter_low_res(before, self._low_res.pending()):
            if multihost.is_main_process():
                self._low_res.save(first, images)

    def _sample_point(self, point: SweepPoint, request: SampleRequest, description: str) -> None:
        """Samples the images of a point that its state does not have, and writes its result."""
        metrics, folder, start = self._new_metrics(), self._folder, time.monotonic()
        clock, identity = SaveClock(), {"point": point.name}
        if folder is not None:
            is_loaded = metrics.load(folder.state_file(point.name), identity)
            if is_loaded and not folder.has_images(point.name, metrics.images):
                metrics = self._new_metrics()
        pipeline = self._pipeline_of(point)
        pipeline.set_progress_bar_config(desc=description, leave=False, **self._pipeline.progress_bar_config)
        pending = multihost.broadcast_from_main(np.arange(len(self._captions)) >= metrics.images)
        for first, by_stage in pipeline.iter_batches(request, pending):
            images = by_stage[-1]
            metrics.update(first, images, self._captions[first : first + len(images)])
            if folder is not None:
                folder.save_images(point.name, first, images)
                clock.save(functools.partial(metrics.save, folder.state_file(point.name), identity))
        if folder is not None:
            result = metrics.result(self._reference)
            seconds = round(time.monotonic() - start, 1)
            folder.finish(point.name, {**result, "seconds": seconds, "images": metrics.images})

    def _new_metrics(self) -> PointMetrics:
        return PointMetrics(self._judge, self._metrics, self._config.num_samples)

    def _progress(self, index: int, number: int, count: int, left: float) -> str:
        """Returns what is logged of a point that is finished."""
        text = f"point {number} of {count}: {self._points[index].label}"
        if self._folder is not None:
            result = self._folder.result(self._points[index].name)
            assert result is not None
            text += "".join(f"; {name} {row['value']:.4g}" for name, row in result["metrics"].items())
        return text + (f"; about {format_seconds(left)} left" if number < count else "")

    def results(self) -> SweepResults:
        """Returns the results of the points that are finished; the main process calls it."""
        assert self._folder is not None
        points = [point for point, is_finished in zip(self._points, self._finished, strict=True) if is_finished]
        rows = [(self._folder.result(point.name) or {})["metrics"] for point in points]
        return SweepResults(points, rows, curve_axis(self._plan.axes))

    def write(self) -> None:
        """Writes the results of the points that are finished; the main process does."""
        if self._folder is None:
            return
        results, title = self.results(), f"Stage {self._plan.stage}: {', '.join(self._plan.axes)}"
        head = {
            **self._inputs(),
            "last_stage": self._last,
            "axes": {name: list(v) for name, v in self._plan.axes.items()},
        }
        write_json(self._out / "sweep.json", {**head, **results.to_json()})
        plot_results(results, title, self._out / "sweep.png")
        shown = min(SHOWN, self._config.num_samples)
        for point in results.points:
            if point.name not in self._pages:
                self._pages[point.name] = [image_uri(image) for image in self._folder.images(point.name, shown)]
        images = [self._pages[point.name] for point in results.points]
        page = render_results(results, title, self._notes(), images, self._captions[:shown])
        atomic_write(self._out / "sweep.html", page.encode())
        flush_or_warn()

    def _notes(self) -> list[str]:
        """Returns what the page says of what was sampled."""
        height, width, _ = self._pipeline.stages[self._last].stage.image_shape
        images, captions = f"{self._config.num_samples:,} images of {height}×{width}", self._captions_origin.name
        return [f"{images} a point, for captions of {captions}", f"distances to {self._reference.origin.name}"]
