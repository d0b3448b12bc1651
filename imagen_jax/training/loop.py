"""The training loop: from the last checkpoint, given weights or random ones, to the last step, for any objective."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

from imagen_jax.config.load import load_config
from imagen_jax.config.schema import StageConfig, TrainingConfig
from imagen_jax.data.dataset import ImageTextDataset
from imagen_jax.data.left_out import left_out_of
from imagen_jax.data.pipeline import batch_record_names, rescale_position, training_batches
from imagen_jax.datasets.from_config import make_buckets
from imagen_jax.errors import ConfigError
from imagen_jax.images.grid import save_png
from imagen_jax.io import uploads
from imagen_jax.io.atomic import write_json
from imagen_jax.io.paths import as_path
from imagen_jax.parallel import batching, devices, multihost, runtime
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.stages.adapter import trained_patterns
from imagen_jax.stages.base import open_base, save_base
from imagen_jax.stages.checkpoints import Checkpoints, has_checkpoint
from imagen_jax.stages.codec import CODEC
from imagen_jax.stages.frozen import load_frozen, save_frozen
from imagen_jax.stages.stage_folder import open_weights
from imagen_jax.stages.trainable import merge, split
from imagen_jax.stages.workdir import check_batch_size, keep_own_values, open_workdir
from imagen_jax.training.codec_start import open_codec
from imagen_jax.training.goodput import Clock, Goodput
from imagen_jax.training.init_from import StartingPoint
from imagen_jax.training.metric_writer import MetricWriter, NullWriter
from imagen_jax.training.objective import Preview, SampleFigures, Task
from imagen_jax.training.oom import explain_oom
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.preemption import StopRequest, stop_message
from imagen_jax.training.progress_bar import ProgressBar, RunInfo
from imagen_jax.training.resume import log_changes
from imagen_jax.training.run_files import EVALUATIONS, RunFiles
from imagen_jax.training.skip_updates import SkippedUpdateMonitor
from imagen_jax.training.state import Frozen, TrainState, abstract_parts, first_state
from imagen_jax.training.step import make_train_step
from imagen_jax.training.stuck import StuckMonitor, check_learned
from imagen_jax.training.tasks import make_task
from imagen_jax.training.validate import check_training, learning_warnings
from imagen_jax.training.watchdog import Watchdog
from imagen_jax.training.workdir_lock import check_writable, lock_workdir

# Orbax has up to 128 of each item of a checkpoint open, and shards of data and logs are open too.
OPEN_FILES = 512

TaskFn = Callable[[StageConfig, jax.sharding.Mesh], Task]


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """How a call of `train` ended.

    Attributes:
        workdir: the stage's folder.
        step: the last step, which is saved.
        goodput: where the run's time went, as a sentence.
        stopped_by: what asked the run to stop before its last step; empty if it is complete.
    """

    workdir: Path
    step: int
    goodput: str
    stopped_by: str = ""

    def summary(self) -> str:
        """Returns the result as two lines of text."""
        if self.stopped_by:
            return f"{self.goodput}\n{stop_message(str(self.workdir), self.stopped_by, self.step)}"
        files = "previews, loss.png, diagnostics.png and log.txt are there"
        return f"{self.goodput}\n{self.workdir}: trained to step {self.step}; {files}"


def train(
    config: StageConfig | str | Path,
    workdir: str | Path,
    *,
    task: TaskFn = make_task,
    stop: StopRequest | None = None,
    clock: Clock | None = None,
) -> TrainingResult:
    """Trains a stage, from its last checkpoint or from random weights, to its last step, or until asked to stop.

    It runs in any thread, and does not handle signals; `preemption.stop_on_signals` makes a `stop` that does.

    Args:
        config: the stage, or the path of its config file.
        workdir: the stage's folder; created if it does not exist.
        task: returns what to train, for a config and a mesh; the stage of the config by default.
        stop: asks the run to save and to return.
        clock: measures the run's time from its start; from this call on by default.

    Returns:
        The last step and how the run ended.

    Raises:
        ConfigError: at the start, before anything is written.
        TrainingError: the run cannot continue; what it saved stays.
    """
    config, workdir = load_config(config), as_path(workdir)
    check_writable(workdir)
    config = keep_own_values(workdir, config)
    runtime.raise_open_file_limit(OPEN_FILES, "training")
    clock = clock or Clock()
    with explain_oom(config), clock.compilation():
        return _run(config, workdir, task, stop or StopRequest(), clock)


def _run(config: StageConfig, workdir: Path, task_of: TaskFn, stop: StopRequest, clock: Clock) -> TrainingResult:
    """Trains: the full story, in time order."""
    training = config.training
    check_training(config)
    mesh = make_mesh(config.mesh.axes)
    task = task_of(config, mesh)
    objective = task.objective
    buckets, batches = _open_data(config, task, mesh)

    optimizer = make_optimizer(config.optimizer, config.training.steps)
    abstract, abstract_frozen = abstract_parts(
        objective.init, optimizer, mesh, config.sharding_rules, trained_patterns(config)
    )
    everything = merge(abstract.params, abstract_frozen)
    start = None if has_checkpoint(workdir) else StartingPoint(config, everything)
    codec = None if start is None else open_codec(config, start, everything)
    networks = task.load_networks(workdir)
    train_step = make_train_step(objective, config, optimizer, abstract, mesh)
    preview, evaluation = task.make_preview(), task.make_evaluation(workdir)

    files = RunFiles(workdir, f"{workdir.name} on {devices.describe_devices(mesh.devices.flat)}")
    log = files.warn
    with contextlib.ExitStack() as stack:
        claim = stack.enter_context(lock_workdir(workdir))
        stack.callback(uploads.flush_or_warn)
        stack.callback(files.close)
        open_workdir(workdir, config, log)
        for warning in learning_warnings(config):
            log(warning)
        num_examples = [len(examples) for examples in buckets]
        checkpoints = Checkpoints(
            workdir,
            keep=training.keep_checkpoints,
            keep_best=training.keep_best,
            score_of=config.evaluation.best,
            continue_on_error=training.on_failed_save == "continue",
            log=log,
        )
        stack.callback(checkpoints.close)
        if start is not None and checkpoints.latest_step is None:
            params = start.load(objective.init, log)
            if codec is not None:
                params[CODEC] = codec.load(mesh, _make_batches(config, task, buckets, mesh), log)
            trainable, frozen_params = split(params, trained_patterns(config))
            state = first_state(optimizer, abstract, trainable)
            if training.init_weights == "both":
                state = dataclasses.replace(state, ema_params=start.load_ema())
            if config.adapter.enabled:
                assert start.base is not None  # the config was checked for it
                save_base(workdir, start.base)
            else:
                save_frozen(workdir, frozen_params)
            task.record_networks(workdir)
        else:
            state, saved = checkpoints.restore(abstract)
            if config.adapter.enabled:
                frozen_params = open_base(workdir, open_weights).load(abstract_frozen)
            else:
                frozen_params = load_frozen(workdir, abstract_frozen)
            log_changes(saved, config, state, num_examples, log)
            batches.set_state(_resume_position(saved, training, len(buckets), log))

        frozen = Frozen(networks, frozen_params)
        first = int(state.step)
        writer = _open_writer(files, state, frozen)
        for message in left_out_of(buckets[0].source).messages():
            writer.log(message)
        goodput = Goodput(files, first, clock)
        monitor = _monitor_updates(config, buckets, first, batches.get_state()["next_index"], log)
        run = RunInfo(workdir.name, first, training.steps, training.batch_size, training.log_every)
        stuck = StuckMonitor(config, mesh)
        progress = ProgressBar(run, writer, buckets[0].corrupt, [monitor.update, stuck.update], goodput.metrics)
        stack.enter_context(Watchdog(clock, training.stall_seconds, workdir, log))

        for step in range(first + 1, training.steps + 1):
            with clock.spend("step" if stop.ready else "compile", step):
                with clock.spend("data", step):
                    batch = batching.shard_local_batch(progress.next_batch(batches), objective.batch_axes, mesh)
                state, metrics = train_step(state, frozen, batch)
                progress.step(step, metrics)
                stuck.check(step, state.params)
            claim.check()
            stop.ready = True
            goodput.tick(step)
            if stop.should_stop():
                break
            score = None
            if preview and (step % training.preview_every == 0 or step == training.steps):
                with clock.spend("evaluation", step):
                    score = _write_preview(step, preview(merge(state.ema_params, frozen.params)), files, writer)
            if config.evaluation.best:
                score = None  # those of previews are of something else
            if evaluation and (step % config.evaluation.every == 0 or step == training.steps):
                with clock.spend("evaluation", step):
                    figures = evaluation(merge(state.ema_params, frozen.params))
                    _write_figures(step, figures, files, writer)
                    score = score if figures.score is None else figures.score
            if step % training.save_every == 0 or step == training.steps:
                with clock.spend("checkpoint", step):
                    checkpoints.save(state, batches.get_state(), config, score, num_examples)
                goodput.record(step)
            elif checkpoints.failed():
                checkpoints.wait()

        progress.close()
        step = int(state.step)
        with clock.spend("checkpoint", step):
            checkpoints.save(state, batches.get_state(), config, num_examples=num_examples)
            checkpoints.close()
        goodput.record(step)
        stopped_by = stop.reason if stop.asked and step < training.steps else ""
        writer.log(goodput.summary())
        writer.log(f"stopped by {stopped_by} at step {step}, which is saved" if stopped_by else f"done at step {step}")
        writer.close()
        if step >= training.steps:
            check_learned(state)
    return TrainingResult(workdir, step, goodput.summary(), stopped_by)


def _open_data(
    config: StageConfig, task: Task, mesh: jax.sharding.Mesh
) -> tuple[list[ImageTextDataset], grain.DatasetIterator]:
    """Opens the training data.

    Returns:
        The data sets, one for each bucket of sizes, and an endless iterator over this process's part of the batches.

    Raises:
        ConfigError: the data cannot be opened, or the task cannot be trained on them.
    """
    needs_objects = config.inpainting.needs_objects
    buckets = make_buckets(config.data, config.data.split, config.image_hw, config.channels, needs_objects)
    task.check_sources([examples.source for examples in buckets])
    return buckets, _make_batches(config, task, buckets, mesh)


def _make_batches(
    config: StageConfig, task: Task, buckets: list[ImageTextDataset], mesh: jax.sharding.Mesh
) -> grain.DatasetIterator:
    """Returns an endless iterator over this process's part of the batches of training, from the first one."""
    return training_batches(
        buckets,
        text_features=task.text_features,
        batch_size=config.training.batch_size,
        seed=config.seed,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
        rows=batching.local_rows(config.training.batch_size, mesh),
    )


def _open_writer(files: RunFiles, state: TrainState, frozen: Frozen) -> MetricWriter | NullWriter:
    """Returns the writer of a run that resumes from a state; only the main process writes anything."""
    first = int(state.step)
    writer = MetricWriter(files, first) if multihost.is_main_process() else NullWriter()
    trained, rest = (sum(leaf.size for leaf in jax.tree.leaves(part)) for part in (state.params, frozen.params))
    parameters = f"{trained + rest:,} parameters" + (f" ({trained:,} trained, {rest:,} frozen)" if rest else "")
    writer.log(f"{'resumed' if first else 'started'} at step {first}: {parameters}")
    if warning := devices.unused_accelerator():
        files.warn(warning)
    return writer


def _monitor_updates(
    config: StageConfig, buckets: list[ImageTextDataset], first: int, batch: int, log: Callable[[str], None]
) -> SkippedUpdateMonitor:
    """Returns the monitor of skipped updates; `batch` is the index of the batch of step `first` + 1."""
    size, seed = config.training.batch_size, config.seed
    return SkippedUpdateMonitor(
        config.training.max_skipped_updates,
        lambda step: batch_record_names(buckets, size, seed, batch + step - first - 1),
        log,
    )


def _write_preview(step: int, preview: Preview, files: RunFiles, writer: MetricWriter | NullWriter) -> float:
    """Writes the preview of a step and its metrics; returns its score."""
    writer.scalars(step, preview.metrics)
    if multihost.is_main_process():
        with files.attempt("previews"):
            save_png(preview.image, files.workdir / "previews" / f"{step:08d}.png")
        writer.image(step, "preview", np.asarray(preview.image))
    return preview.score


def _write_figures(step: int, figures: SampleFigures, files: RunFiles, writer: MetricWriter | NullWriter) -> None:
    """Writes the figures of a step."""
    writer.scalars(step, {name: row["value"] for name, row in figures.rows.items()})
    if multihost.is_main_process():
        with files.attempt(EVALUATIONS):
            write_json(files.workdir / EVALUATIONS / f"{step:08d}.json", {"metrics": figures.rows})


def _resume_position(
    saved: dict[str, Any], training: TrainingConfig, buckets: int, log: Callable[[str], None]
) -> dict[str, Any]:
    """Returns the data iterator's state after a checkpoint, in this run's batches. Raises ConfigError if refused."""
    before, now = saved["config"]["training"]["batch_size"], training.batch_size
    check_batch_size(before, now, training.allow_batch_change)
    if before != now and buckets > 1:
        raise ConfigError(
            f"training.batch_size {now} instead of {before} would lose the position in the data: batches of {buckets} "
            "sizes (data.buckets) take turns; keep it"
        )
    position, skipped = rescale_position(saved["data"], before, now)
    if before != now:
        log(
            f"training.batch_size is {now} instead of {before}: the data continue with batch {position['next_index']}; "
            f"{skipped} example(s) are skipped and none is repeated"
        )
    return position
