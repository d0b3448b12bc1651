"""Checkpoints of a stage: written asynchronously by Orbax, complete or not used, verified by checksum when read.

    WORKDIR/checkpoints/STEP/                  step, params, opt_state, ema_params; metadata: data position, config, …
    WORKDIR/checkpoints/STEP/SHA256SUMS        checksum of every file, because Orbax would load flipped bits

A checkpoint is complete after its checksums are written (see `checkpoint_folder.py`), so that a kill at any moment
leaves only complete checkpoints and leftovers. Parameters, EMA and optimizer state are separate items, so that sampling
reads and verifies the EMA alone.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import logging
import math
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint.experimental.v1 as ocp

from imagen_jax.config.load import to_json
from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import ConfigError, TrainingError, first_line, is_out_of_space
from imagen_jax.io import checksums, uploads
from imagen_jax.io.bucket import BucketError
from imagen_jax.io.claims import LOCK_FILE
from imagen_jax.parallel import multihost, runtime
from imagen_jax.stages import saved_arrays
from imagen_jax.stages.checkpoint_folder import FROZEN, BucketCheckpointFolder, CheckpointFolder, checkpoint_folder

CHECKPOINTS = "checkpoints"
_STATE_ITEMS = ("step", "params", "opt_state", "ema_params")
MAX_VANISHED = 50  # checkpoints that are deleted one after another before they are read
_MAX_COPIED_BYTES = 2**30  # of a checkpoint that is copied before it has once been deleted too early
_ORBAX_METADATA = "_CHECKPOINT_METADATA"
_VERSIONED_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")

T = TypeVar("T")

logger = logging.getLogger(__name__)


class VanishedError(Exception):
    """A checkpoint was deleted while it was read, as a run that trains deletes old ones."""


class Checkpoints:
    """Saves, restores, verifies and rotates the checkpoints of a stage.

    Args:
        workdir: the stage's folder.
        keep: number of latest checkpoints to keep; None to keep all and only read.
        keep_best: whether to keep the checkpoint with the lowest score in addition.
        score_of: names what scores are of; checkpoints with scores of something else count as having none.
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
        score_of: str = "",
        continue_on_error: bool = False,
        log: Callable[[str], None] = logger.warning,
    ) -> None:
        self._folder = checkpoint_folder(workdir / CHECKPOINTS)
        self._frozen = checkpoint_folder(workdir / FROZEN)
        self._lock = workdir / LOCK_FILE
        self._keep, self._keep_best, self._score_of = keep, keep_best, score_of
        self._continue_on_error, self._log = continue_on_error, log
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._ignored: set[int] = set()  # damaged or misnamed steps, which a reader leaves in place
        self._misnamed: dict[int, int] = {}  # the names of folders by the step that was saved in them
        self._identities: dict[int, bytes | None] = {}  # of checkpoints when they were verified
        self._was_late = False  # whether a checkpoint was deleted while it was read: then the next one is copied
        self._copies: dict[int, Path] = {}
        self._newest = self.latest_step  # the step that was saved or restored last
        if keep is not None and multihost.is_main_process():
            self._folder.clean()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None if there is none."""
        return max((set(self._folder.steps()) - self._ignored) | self._misnamed.keys(), default=None)

    def save(
        self,
        state: Any,
        data: dict[str, Any],
        config: StageConfig,
        score: float | None = None,
        num_examples: Sequence[int] | None = None,
    ) -> None:
        """Starts to save a TrainState, after the save before it is complete.

        Args:
            state: the TrainState; the checkpoint is named after its step, and a step is saved once.
            data: the data iterator's state.
            config: the run's config.
            score: the score for `keep_best`, lower is better; None if this step has none.
            num_examples: the number of training examples of each bucket, on which the order of the data depends.

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
        metadata: dict[str, Any] = {"data": data, "config": to_json(config), "versions": versions, "score": score}
        metadata["score_of"] = self._score_of
        metadata["num_examples"] = None if num_examples is None else list(num_examples)
        frozen = self._frozen.identity(0)
        if frozen is not None:
            metadata["frozen"] = frozen.decode()
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(items))
        try:
            if multihost.is_main_process():
                moved = self._folder.begin(step)
                if moved:
                    self._log(f"{self._folder.step(step)} is in the way of the checkpoint of step {step}: {moved}")
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
            uploads.flush_or_warn()  # a run that resumes here has its metrics until here
            saved_arrays.commit(self._folder, step)
            if multihost.is_main_process():
                self._delete_old(step)
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
            return TrainingError(
                f"the checkpoint of step {step} could not be written to {folder}: {first_line(error)}; those "
                "before it are intact, and the same command resumes from them"
            )
        older = self.latest_step
        return TrainingError(
            f"the checkpoint of step {step} ({size:,} bytes) could not be written to {folder}: no space left "
            f"({shutil.disk_usage(folder).free:,} bytes are free); "
            f"{'there is no older checkpoint' if older is None else f'the checkpoint of step {older} is intact'}; "
            "free some space, or raise the limit, and run the same command again"
        )

    def _delete_old(self, newest: int) -> None:
        """Deletes all complete checkpoints up to the newest but the latest and, with `keep_best`, the best."""
        steps = sorted(step for step in self._folder.steps() if step <= newest)
        kept = set(steps[-(self._keep or len(steps)) :])
        if self._keep_best:
            scores = {step: self._score(step) for step in steps}
            kept.add(min(steps, key=lambda step: (scores[step], -step)))
        for step in set(steps) - kept:
            self._folder.delete(step)

    def _score(self, step: int) -> float:
        metadata = _verified_metadata(self._folder, step)  # None if it is damaged, which is reported at a restore
        is_comparable = metadata is not None and metadata.get("score_of", "") == self._score_of
        score = metadata.get("score") if metadata is not None and is_comparable else None
        return score if score is not None and math.isfinite(score) else math.inf

    def metadata(self, step: int) -> dict[str, Any]:
        """Returns what was saved beside a step's state: `data`, `config`, `versions`, `score`, and perhaps `frozen`.

        `frozen` has the checksums of the frozen parameters.
        """
        return ocp.checkpointables_metadata(str(self.path(step))).custom_metadata

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
            (TrainState, metadata): the metadata has `data`, the data iterator's state, `config`, `versions`, `score`,
            and `num_examples`, which those of earlier versions lack.

        Raises:
            ConfigError: names, shapes or types of the checkpoint differ from those of the abstract state.
            TrainingError: no checkpoint passes verification.
        """
        items = {name: getattr(abstract, name) for name in _STATE_ITEMS}
        step, (state, metadata) = self.read(set(items), lambda step: (self._load(step, items), self.metadata(step)))
        self._newest = step
        return type(abstract)(**state), metadata

    def _load(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        path = self.path(step)
        stored = saved_arrays.shapes(path)
        mismatches = [text for name in items for text in saved_arrays.tree_mismatches(stored[name], items[name], name)]
        if mismatches:
            raise saved_arrays.mismatch_error(f"checkpoint {path}", mismatches)
        return saved_arrays.load(path, items)

    def read(self, items: set[str], read: Callable[[int], T], step: int | None = None) -> tuple[int, T]:
        """Reads the newest intact checkpoint; if it is deleted meanwhile, as by a run that trains, the next one.

        Args:
            items: the items to verify.
            read: reads from the folder of a step, see `path`.
            step: the only step to read; None for the newest.

        Returns:
            (the step, what `read` returns).

        Raises:
            ConfigError: there is no such checkpoint.
            TrainingError: none passes verification, or each is deleted before it is read.
        """
        for _ in range(MAX_VANISHED):
            found = self.latest_intact(items) if step is None else self._intact(step, items)
            with contextlib.suppress(VanishedError):
                return found, self.read_at(found, functools.partial(read, found))
        raise self.vanished_error()

    def vanished_error(self) -> TrainingError:
        """Returns the error for checkpoints that are deleted faster than they are read."""
        return TrainingError(
            f"{self._folder.path}: {MAX_VANISHED} checkpoints in a row were deleted while they were read; let the run "
            "that writes them keep more, training.keep_checkpoints, or save less often, training.save_every"
        )

    def read_at(self, step: int, read: Callable[[], T]) -> T:
        """Returns what a function reads from a checkpoint that was verified; all processes call it.

        Raises:
            VanishedError: the checkpoint is not there any more, and what was read may be incomplete.
        """
        with saved_arrays.silenced():
            result, error = None, None
            try:
                result = read()
            except Exception as caught:
                error = caught
            # whatever the error is: Orbax and TensorStore have many for a file that is not there
            if step not in self._copies and self._has_vanished(step):
                self._was_late = True
                del result, error
                raise VanishedError
        failed = multihost.all_gather_strings("" if error is None else type(error).__name__)
        if error is not None:
            raise error
        if any(failed):
            raise TrainingError(f"checkpoint {self.path(step)} cannot be read by another process: see its message")
        return result  # type: ignore[return-value]

    def _has_vanished(self, step: int) -> bool:
        """Returns whether a checkpoint was deleted or replaced since it was looked at, as process 0 sees it."""
        folder = self._folder_of(step)
        there = self._folder.exists(folder) and self._folder.identity(folder) == self._identities.get(step)
        return multihost.all_gather_strings("" if there else "vanished")[0] != ""

    def _may_vanish(self, step: int, items: set[str]) -> bool:
        """Returns whether a run may be training in the folder, and its checkpoints are small enough to be copied.

        Libraries below Orbax print a traceback where a file is gone. Large checkpoints are there for long.
        """
        try:
            if self._keep is not None or not self._lock.read_bytes():
                return False  # a run empties its lock at its end
            return saved_arrays.size(self._folder.step(self._folder_of(step)), items) <= _MAX_COPIED_BYTES
        except BucketError:
            raise
        except OSError:
            return False

    def _copy(self, step: int, items: set[str]) -> None:
        """Copies a checkpoint to a temporary folder, which nobody deletes while it is read; if it can."""
        copy = Path(tempfile.mkdtemp(prefix="imagen_jax-"))
        weakref.finalize(self, shutil.rmtree, copy, ignore_errors=True)
        try:
            saved_arrays.copy(self._folder.step(self._folder_of(step)), copy, items)
        except BucketError:
            raise
        except OSError:  # it has vanished again, or there is no space: it is read where it is
            return shutil.rmtree(copy, ignore_errors=True)
        self._copies[step] = copy

    def path(self, step: int) -> Path:
        """Returns the folder of a step's checkpoint, or of a copy of it."""
        return self._copies.get(step) or self._folder.step(self._folder_of(step))

    def _folder_of(self, step: int) -> int:
        return self._misnamed.get(step, step)

    def checksums(self, step: int) -> bytes:
        """Returns the file of checksums of a checkpoint that was verified."""
        return self._identities[step] or b""

    def latest_intact(self, items: set[str]) -> int:
        """Returns the newest step whose files of these items pass verification; newer ones are quarantined.

        A checkpoint's step is the one that is saved in it, whatever its folder is called.

        Raises:
            ConfigError: there is no complete checkpoint.
            TrainingError: there is none that passes verification.
        """
        damaged, vanished = 0, 0
        # process 0 decides: the others may still see the old name of a folder that it has renamed
        while (latest := multihost.all_gather_strings(str(self.latest_step))[0]) != "None":
            step = int(latest)
            try:
                problems, saved_step = self._check(step, items)
            except VanishedError:
                self._misnamed.pop(step, None)
                vanished += 1
                if vanished == MAX_VANISHED:
                    raise self.vanished_error() from None
                continue
            if saved_step == step:
                return step
            if saved_step is None:
                damaged += 1
                self._quarantine(step, problems)
            else:
                self._set_right(step, saved_step)
        if not damaged:
            raise ConfigError(f"{self._folder.path} has no complete checkpoint: train it first")
        raise TrainingError(
            f"{self._folder.path} has no intact checkpoint: {damaged} of {damaged} are damaged; repair one, "
            "or train again from step 0 with the same command"
        )

    def _intact(self, step: int, items: set[str]) -> int:
        """Returns a step whose checkpoint passes verification. Raises ConfigError and TrainingError."""
        steps = multihost.all_gather_strings(" ".join(map(str, sorted(self._folder.steps()))))[0].split()
        if str(step) not in steps:
            there = f"there are those of {', '.join(steps)}" if steps else "there is none at all: train it first"
            raise ConfigError(f"{self._folder.path} has no complete checkpoint of step {step}: {there}")
        try:
            problems, saved_step = self._check(step, items)
        except VanishedError:
            return self._intact(step, items)
        if saved_step is None:
            raise TrainingError(f"checkpoint {self.path(step)} is damaged: {'; '.join(problems)}; give another step")
        if saved_step != step:
            raise ConfigError(
                f"checkpoint {self.path(step)} was saved at step {saved_step}: rename it to {saved_step}, or give "
                "another step"
            )
        return step

    def _check(self, step: int, items: set[str]) -> tuple[list[str], int | None]:
        """Verifies a checkpoint.

        Returns:
            (problems, the step that is saved in it, None if there are problems).

        Raises:
            VanishedError: it has been deleted.
        """
        self._identities[step] = self._folder.identity(self._folder_of(step))
        self._copies.pop(step, None)
        if jax.process_count() == 1 and (self._was_late or self._may_vanish(step, {*items, "step"})):
            self._copy(step, {*items, "step"})
        problems = saved_arrays.verify(self.path(step), {*items, "step"})
        if problems:
            self._copies.pop(step, None)
            if self._has_vanished(step):
                self._was_late = True
                raise VanishedError
            return problems, None
        try:
            return [], self.read_at(step, lambda: saved_arrays.load_integer(self.path(step), "step"))
        except (VanishedError, BucketError):
            raise
        except Exception as error:
            return [f"its step cannot be read ({first_line(error)})"], None

    def _quarantine(self, step: int, problems: list[str]) -> None:
        """Takes a damaged checkpoint out of use: a writer renames it, a reader ignores it."""
        message = f"checkpoint {self.path(step)} is damaged: {'; '.join(problems)}"
        folder = self._folder_of(step)
        self._misnamed.pop(step, None)
        if self._keep is None:
            self._ignored.add(folder)
        if not multihost.is_main_process():
            return
        done = "it is ignored" if self._keep is None else self._folder.quarantine(folder, "; ".join(problems))
        self._log(f"{message}; {done}")

    def _set_right(self, step: int, saved_step: int) -> None:
        """Lets a checkpoint count as the step that was saved in it: a writer renames it too."""
        message = f"checkpoint {self._folder.step(step)} was saved at step {saved_step}, which counts, and not {step}"
        if self._keep is None or isinstance(self._folder, BucketCheckpointFolder):
            self._ignored.add(step)
            self._misnamed[saved_step] = step
        if not multihost.is_main_process():
            return
        self._log(message if self._keep is None else f"{message}: {self._folder.rename(step, saved_step)}")

    def close(self) -> None:
        """Waits for the save in progress. Raises TrainingError if it failed, whatever `continue_on_error` is."""
        self._continue_on_error = False
        try:
            self.wait()
        finally:
            self._thread.shutdown()


def has_checkpoint(workdir: Path, step: int | None = None) -> bool:
    """Returns whether a stage's folder has a complete checkpoint, of a step if one is given; it may be damaged."""
    steps = checkpoint_folder(workdir / CHECKPOINTS).steps()
    return bool(steps) if step is None else step in steps


def saved_config(workdir: Path) -> tuple[int, Any] | None:
    """Returns (step, config as JSON) of the newest checkpoint of a stage's folder whose copy of the config is intact.

    Nothing else in the checkpoint is verified. None if there is no such checkpoint.
    """
    found = saved_metadata(workdir)
    return (found[0], found[1]["config"]) if found and "config" in found[1] else None


def saved_metadata(workdir: Path) -> tuple[int, dict[str, Any]] | None:
    """Returns (step, metadata) of the newest checkpoint of a stage's folder whose metadata are intact; else None."""
    folder = checkpoint_folder(workdir / CHECKPOINTS)
    steps: list[int] = []
    for _ in range(MAX_VANISHED):
        before, steps = steps, sorted(folder.steps(), reverse=True)
        if steps == before:
            break  # those that could not be read are damaged, and were not deleted meanwhile
        for step in steps:
            metadata = _verified_metadata(folder, step)
            if metadata is not None:
                return step, metadata
    return None


def _verified_metadata(folder: CheckpointFolder, step: int) -> dict[str, Any] | None:
    """Returns the metadata of a checkpoint; None if their file is damaged or gone."""
    data = checksums.read_verified(folder.step(step), _ORBAX_METADATA)
    try:
        return None if data is None else dict(json.loads(data)["custom_metadata"])
    except (ValueError, KeyError, TypeError):
        return None
