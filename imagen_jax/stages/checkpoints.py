"""Checkpoints of a stage: written asynchronously by Orbax, complete or not used, verified by checksum when read.

    WORKDIR/checkpoints/STEP/                  step, params, opt_state, ema_params; metadata: data position, config, …
    WORKDIR/checkpoints/STEP/SHA256SUMS        checksum of every file, because Orbax would load flipped bits

A checkpoint is complete after its checksums are written (see `checkpoint_folder.py`), so that a kill at any moment
leaves only complete checkpoints and leftovers. Parameters, EMA and optimizer state are separate items, so that sampling
reads and verifies the EMA alone.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp

from imagen_jax.config.load import to_json
from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import TrainingError, is_out_of_space
from imagen_jax.io import uploads
from imagen_jax.parallel import multihost, runtime
from imagen_jax.stages import saved_arrays
from imagen_jax.stages.checkpoint_folder import checkpoint_folder

CHECKPOINTS = "checkpoints"
_STATE_ITEMS = ("step", "params", "opt_state", "ema_params")
_VERSIONED_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")

logger = logging.getLogger(__name__)


class Checkpoints:
    """Saves, restores, verifies and rotates the checkpoints of a stage.

    Args:
        workdir: the stage's folder.
        keep: number of latest checkpoints to keep; None to keep all and only read.
        keep_best: whether to keep the checkpoint with the lowest score in addition.
        continue_on_error: whether a failed save is only logged; the last save, on `close`, always has to succeed.
        log: gets a message about each checkpoint that is damaged or was not written; a warning of this module's logger
            by default.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        keep: int | None = None,
        keep_best: bool = False,
        continue_on_error: bool = False,
        log: Callable[[str], None] = logger.warning,
    ) -> None:
        self._folder = checkpoint_folder(workdir / CHECKPOINTS)
        self._keep, self._keep_best = keep, keep_best
        self._continue_on_error, self._log = continue_on_error, log
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._ignored: set[int] = set()  # damaged steps, which a reader leaves in place
        self._newest = self.latest_step  # the step that was saved or restored last
        if keep is not None and multihost.is_main_process():
            self._folder.clean()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None if there is none."""
        return max(set(self._folder.steps()) - self._ignored, default=None)

    def save(self, state: Any, data: dict[str, Any], config: StageConfig, score: float | None = None) -> None:
        """Starts to save a TrainState, after the save before it is complete.

        Args:
            state: the TrainState; the checkpoint is named after its step, and a step is saved once.
            data: the data iterator's state.
            config: the run's config.
            score: the score for `keep_best`, lower is better; None if this step has none.

        Raises:
            TrainingError: this or the previous save failed, and `continue_on_error` is False.
        """
        self.wait()
        step = int(state.step)
        if step == self._newest:
            return
        self._newest = step
        items = {name: getattr(state, name) for name in _STATE_ITEMS}
        versions = {name: importlib.metadata.version(name) for name in _VERSIONED_PACKAGES}
        metadata = {"data": data, "config": to_json(config), "versions": versions, "score": score}
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(items))
        try:
            if multihost.is_main_process():
                self._folder.begin(step)
            path = str(self._folder.unfinished(step))
            response = ocp.save_checkpointables_async(path, items, custom_metadata=metadata)
        except Exception as error:
            self._pending = Future()
            self._pending.set_exception(self._save_error(error, step, size))
            return self.wait()
        self._pending = self._thread.submit(self._finish, response, step, size)

    def _finish(self, response: Any, step: int, size: int) -> None:
        """Waits for Orbax, adds the checksums, and renames the checkpoint. Runs in a thread."""
        try:
            response.result()
            uploads.flush()  # a run that resumes here has its metrics until here
            saved_arrays.commit(self._folder, step)
            if multihost.is_main_process():
                self._delete_old()
        except Exception as error:
            raise self._save_error(error, step, size) from error
        finally:
            runtime.malloc_trim()

    def _save_error(self, error: Exception, step: int, size: int) -> TrainingError:
        """Deletes the partial files of a failed save, and returns the error to raise."""
        if multihost.is_main_process():
            self._folder.discard(step)
        folder = self._folder.path
        if not is_out_of_space(error):
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            return TrainingError(
                f"the checkpoint of step {step} could not be written to {folder}: {reason}; those before it are "
                "intact, and the same command resumes from them"
            )
        older = self.latest_step
        return TrainingError(
            f"the checkpoint of step {step} ({size:,} bytes) could not be written to {folder}: no space left "
            f"({shutil.disk_usage(folder).free:,} bytes are free); "
            f"{'there is no older checkpoint' if older is None else f'the checkpoint of step {older} is intact'}; "
            "free some space, or raise the limit, and run the same command again"
        )

    def _delete_old(self) -> None:
        """Deletes all complete checkpoints but the latest and, with `keep_best`, the best."""
        steps = sorted(self._folder.steps())
        kept = set(steps[-(self._keep or len(steps)) :])
        if self._keep_best:
            scores = {step: self._score(step) for step in steps}
            kept.add(min(steps, key=lambda step: (scores[step], -step)))
        for step in set(steps) - kept:
            self._folder.delete(step)

    def _score(self, step: int) -> float:
        try:
            score = self.metadata(step)["score"]
        except (OSError, ValueError, KeyError, TypeError):
            score = None  # damaged, which is reported when it is restored
        return score if score is not None and math.isfinite(score) else math.inf

    def metadata(self, step: int) -> dict[str, Any]:
        """Returns what was saved beside a step's state: `data`, `config`, `versions` and `score`."""
        return ocp.checkpointables_metadata(str(self._folder.step(step))).custom_metadata

    def failed(self) -> bool:
        """Returns whether the save in progress has failed, without waiting for it; `wait` then reports it."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def wait(self) -> None:
        """Waits until the save in progress is complete on disk.

        Raises:
            TrainingError: the save failed, and `continue_on_error` is False.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except TrainingError as error:
            self._newest = None
            if not self._continue_on_error:
                raise
            self._log(str(error))

    def restore(self, abstract: Any) -> tuple[Any, dict[str, Any]]:
        """Restores the latest checkpoint that passes verification; newer, damaged ones are quarantined.

        Args:
            abstract: the TrainState's shapes, types and shardings; the mesh may differ from that of the save.

        Returns:
            (TrainState, metadata): the metadata has `data`, the data iterator's state, `config`, `versions`, `score`.

        Raises:
            ConfigError: names, shapes or types of the checkpoint differ from those of the abstract state.
            TrainingError: no checkpoint passes verification.
        """
        step, items = self._load({name: getattr(abstract, name) for name in _STATE_ITEMS})
        self._newest = step
        return type(abstract)(**items), self.metadata(step)

    def _load(self, items: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        step = self.latest_intact(set(items))
        path = self.path(step)
        stored = saved_arrays.shapes(path)
        mismatches = [text for name in items for text in saved_arrays.tree_mismatches(stored[name], items[name], name)]
        if mismatches:
            raise saved_arrays.mismatch_error(f"checkpoint {path}", mismatches)
        return step, saved_arrays.load(path, items)

    def path(self, step: int) -> Path:
        """Returns the folder of a step's checkpoint."""
        return self._folder.step(step)

    def latest_intact(self, items: set[str]) -> int:
        """Returns the newest step whose files of these items pass verification; newer ones are quarantined.

        Raises:
            TrainingError: there is none.
        """
        damaged = []
        # process 0 decides: the others may still see the old name of a folder that it has renamed
        while (latest := multihost.all_gather_strings(str(self.latest_step))[0]) != "None":
            step = int(latest)
            problems = saved_arrays.verify(self.path(step), items)
            if not problems:
                return step
            damaged.append(step)
            self._quarantine(step, problems)
        raise TrainingError(
            f"{self._folder.path} has no intact checkpoint: {len(damaged)} of {len(damaged)} are damaged; repair one, "
            "or train again from step 0 with the same command"
        )

    def _quarantine(self, step: int, problems: list[str]) -> None:
        """Takes a damaged checkpoint out of use: a writer renames it, a reader ignores it."""
        if self._keep is None:
            self._ignored.add(step)
        if not multihost.is_main_process():
            return
        message = f"checkpoint {self._folder.step(step)} is damaged: {'; '.join(problems)}"
        if self._keep is None:
            self._log(f"{message}; it is ignored")
            return
        self._log(f"{message}; {self._folder.quarantine(step, '; '.join(problems))}")

    def close(self) -> None:
        """Waits for the save in progress. Raises TrainingError if it failed, whatever `continue_on_error` is."""
        self._continue_on_error = False
        try:
            self.wait()
        finally:
            self._thread.shutdown()


def has_checkpoint(workdir: Path) -> bool:
    """Returns whether a stage's folder has a complete checkpoint; it may be damaged."""
    return bool(checkpoint_folder(workdir / CHECKPOINTS).steps())
