"""Fine-tunings of a server: one at a time, by `finetune`, in a thread beside the one that samples.

An accelerator belongs to one process, so that both share it. A fine-tuning survives a restart: one that ran is
continued, as jobs are, since whoever has started it may be long gone from the page. If the server has died three times
in a row while it ran, as for want of memory, it is left as stopped instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import secrets
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from imagen_jax.errors import ConfigError, TrainingError
from imagen_jax.io.claims import ClaimedError, claim
from imagen_jax.io.paths import as_path, bucket_path
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.serving.finetunings import (
    ENDED,
    Finetuning,
    FinetuningFolders,
    FinetuningStatus,
    UploadedSubject,
)
from imagen_jax.serving.jobs import STOP_RETRY_SECONDS, QueueFullError, StorageError
from imagen_jax.training.finetune import FinetuneSettings, finetune
from imagen_jax.training.finetune_progress import BEFORE_AFTER, FinetuneProgress, preview_path, read_progress
from imagen_jax.training.preemption import StopRequest

_ID_BYTES = 12  # 16 characters
_MAX_WAITING = 16
_MAX_DEATHS = 3  # of the server, in a row, while one ran
_FULL_SECONDS = 600.0  # after which there may be room in the queue
_PROGRESS_SECONDS = 0.5  # that a look at the files of one is good for
_NAME_LENGTH = 40
_BY_CLIENT, _BY_SERVER = "a client", "the end of the server"

logger = logging.getLogger(__name__)


class WrongStatusError(Exception):
    """What is asked of a fine-tuning does not go with where it is; the text is one sentence."""


class Finetuner:
    """The fine-tunings of a server. All methods may be called in any thread.

    Args:
        root: the folder of `--finetune_dir`.
        pipeline: the cascade that the server samples from; adapters have to fit it.
        stages: the same cascade, as `finetune` takes it.
    """

    def __init__(self, root: str | Path, pipeline: ImagenPipeline, stages: Sequence[str]) -> None:
        self._root = as_path(root)
        self._pipeline, self._stages = pipeline, list(stages)
        self._changed = threading.Condition(threading.RLock())
        self._adding = threading.Lock()
        self._all: dict[str, Finetuning] = {}
        self._unusable: dict[str, str] = {}  # adapters that the cascade cannot use, and why
        self._progress: dict[str, tuple[float, FinetuneProgress]] = {}
        self._stop = StopRequest()  # of the one that runs
        self._is_stopping = False
        self._resources = contextlib.ExitStack()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Opens the folder, puts what an earlier process has left back into the queue, and starts the thread.

        Raises:
            ConfigError: another server has the folder, or it cannot be used.
        """
        name = f"--finetune_dir {str(self._root)!r}"
        if bucket_path(self._root) is not None:
            raise ConfigError(f"{name} is in a bucket: give a folder on a disk of this machine")
        try:
            self._resources.enter_context(claim(self._root))
        except ClaimedError as error:
            raise ConfigError(
                f"{name} is in use by another server ({error}): stop it, or give another folder"
            ) from error
        except OSError as error:
            raise ConfigError(f"{name} is not writable ({error.strerror}): give another folder") from error
        try:
            self._folders = FinetuningFolders(self._root)
            for one in self._folders.load_all():
                self._restore(one)
        except BaseException:
            self._resources.close()
            raise
        self._thread = threading.Thread(target=self._work, name="finetuner", daemon=True)
        self._thread.start()

    def _restore(self, one: Finetuning) -> None:
        """Takes over one of an earlier process."""
        self._all[one.id] = one
        if one.status == "stopping":
            self._set(one, "stopped")
        elif one.status == "running":  # the server did not end by a stop
            deaths = one.deaths + 1
            if deaths < _MAX_DEATHS:
                self._set(one, "queued", deaths=deaths)
            else:
                error = f"the server has ended {deaths} times while this ran: its log may say why"
                self._set(one, "stopped", error=error, deaths=deaths)
        elif one.status == "done":
            self._check(one)

    def _check(self, one: Finetuning) -> None:
        """Finds out whether the cascade can use the adapter of one."""
        try:
            self._pipeline.check_lora(self._folders.adapter(one))
            self._unusable.pop(one.id, None)
        except ConfigError as error:
            self._unusable[one.id] = self._folders.without_paths("; ".join(error.problems), one)

    def ask_to_stop(self) -> None:
        """Asks what runs to save and to end, since the server does."""
        with self._changed:
            self._is_stopping = True
            self._stop.ask(_BY_SERVER)
            self._changed.notify_all()

    def stop(self, timeout: float) -> None:
        """Ends the thread: what runs saves after its step, if it can within `timeout` seconds, and continues later."""
        self.ask_to_stop()
        if self._thread is not None:
            self._thread.join(timeout)
            self._thread = None
            with self._changed:
                for one in self._all.values():
                    if one.status == "running":  # it ends with the process, in the middle of a step or a compilation
                        self._folders.save(dataclasses.replace(one, status="queued"))
            self._resources.close()

    # what clients ask for

    def add(self, settings: FinetuneSettings, images: Sequence[UploadedSubject], client: str) -> Finetuning:
        """Adds a fine-tuning to the queue; on return it is on the disk.

        Raises:
            QueueFullError: too many wait, or the server is stopping.
            StorageError: it cannot be kept, such as on a full disk.
        """
        with self._adding:
            with self._changed:
                if self._is_stopping:
                    raise QueueFullError("the server is stopping", STOP_RETRY_SECONDS)
                if len(self._waiting()) >= _MAX_WAITING:
                    raise QueueFullError(f"{_MAX_WAITING} fine-tunings wait", _FULL_SECONDS)
                name = self._unique_name(settings.token, client)
            now = time.time()
            # no dash, with which the argument of a tool would begin
            new_id = secrets.token_urlsafe(_ID_BYTES).replace("-", "_")
            one = Finetuning(new_id, client, name, len(images), settings, "queued", now, now)
            self._folders.add(one, images)
            with self._changed:
                self._all[one.id] = one
                self._changed.notify_all()
        return one

    def _unique_name(self, token: str, client: str) -> str:
        """Returns a name for the adapter of a token, which no other one of the client has."""
        base = re.sub(r"\W+", "-", token.casefold()).strip("-")[:_NAME_LENGTH] or "adapter"
        taken = {one.name for one in self._all.values() if one.client == client} | {*self._pipeline.lora_scales}
        number, name = 1, base
        while name in taken:
            number += 1
            name = f"{base}-{number}"
        return name

    def all_of(self, client: str | None = None) -> list[Finetuning]:
        """Returns the fine-tunings of a client, or all, the newest first."""
        with self._changed:
            return [one for one in reversed(self._all.values()) if client in (None, one.client)]

    def get(self, finetuning_id: str) -> Finetuning | None:
        """Returns a fine-tuning as it is now; None if there is none of this id."""
        with self._changed:
            return self._all.get(finetuning_id)

    def position(self, one: Finetuning) -> int | None:
        """Returns how many are before one; None if it does not wait."""
        with self._changed:
            waiting = self._waiting()
            if one.id not in waiting:
                return None
            runs = any(other.status in ("running", "stopping") for other in self._all.values())
            return waiting.index(one.id) + runs

    def _waiting(self) -> list[str]:
        waiting = [one for one in self._all.values() if one.status == "queued"]
        return [one.id for one in sorted(waiting, key=lambda one: one.queued)]

    def progress(self, one: Finetuning) -> FinetuneProgress:
        """Returns where one is by its files, as they were half a second ago at most while it runs."""
        with self._changed:
            since, progress = self._progress.get(one.id, (0.0, None))
        if progress is None or time.monotonic() > since + _PROGRESS_SECONDS:
            progress = read_progress(self._folders.out(one))
            with self._changed:
                if one.id in self._all:
                    self._progress[one.id] = time.monotonic(), progress
        return progress

    def problem(self, one: Finetuning) -> str | None:
        """Returns why the adapter of one that is done cannot be used; None if it can."""
        with self._changed:
            return self._unusable.get(one.id)

    def end(self, finetuning_id: str) -> Finetuning:
        """Stops one: what runs saves after its step. Returns it as it is then.

        Raises:
            WrongStatusError: it has ended.
            StorageError: that cannot be kept.
        """
        with self._changed:
            one = self._all[finetuning_id]
            if one.status in ENDED:
                raise WrongStatusError(f"the fine-tuning is {one.status}: there is nothing to stop")
            if one.status == "queued":
                return self._set(one, "stopped")
            self._stop.ask(_BY_CLIENT)
            return self._set(one, "stopping")

    def resume(self, finetuning_id: str) -> Finetuning:
        """Puts one that was stopped, or has failed, back into the queue, behind the others. Returns it.

        Raises:
            WrongStatusError: it is in another state.
            StorageError: that cannot be kept.
        """
        with self._changed:
            one = self._all[finetuning_id]
            if one.status not in ("stopped", "failed"):
                raise WrongStatusError(f"the fine-tuning is {one.status}: only what was stopped or failed is continued")
            one = self._set(one, "queued", queued=time.time(), deaths=0)
            self._changed.notify_all()
            return one

    def remove(self, finetuning_id: str) -> None:
        """Deletes one with its images and its adapter.

        Raises:
            WrongStatusError: it runs.
            StorageError: it cannot be deleted.
        """
        with self._changed:
            one = self._all[finetuning_id]
            if one.status in ("running", "stopping"):
                raise WrongStatusError(f"the fine-tuning is {one.status}: stop it first, and wait until it is stopped")
            self._folders.remove(one)
            for known in (self._all, self._unusable, self._progress):
                known.pop(one.id, None)

    # files

    def image_path(self, one: Finetuning, index: int) -> Path | None:
        """Returns the path of an image that was sent; None if there is none of this index."""
        return _existing(self._folders.image(one, index))

    @property
    def shows_samples(self) -> bool:
        """Whether samples of training may be seen: no safety checker has looked at them."""
        return self._pipeline.safety_checker is None

    def preview_path(self, one: Finetuning, stage: int, step: int) -> Path | None:
        """Returns the path of the preview of a step; None if there is none, or the cascade has a safety checker."""
        return _existing(preview_path(self._folders.out(one), stage, step)) if self.shows_samples else None

    def before_after_path(self, one: Finetuning) -> Path | None:
        """Returns the path of the samples before and after; None likewise, or before they are drawn."""
        return _existing(self._folders.out(one) / BEFORE_AFTER) if self.shows_samples else None

    def archive_path(self, one: Finetuning) -> Path | None:
        """Returns the path of the adapter as a ZIP file; None if it is not done. Raises StorageError."""
        return self._folders.archive(one) if one.status == "done" else None

    def adapter_path(self, finetuning_id: str) -> Path:
        """Returns the folder of the adapter of one that is done. Raises ConfigError if there is none."""
        one = self.get(finetuning_id)
        if one is None or one.status != "done":
            raise ConfigError("an adapter that the job asks for was deleted: send the job again without it")
        return self._folders.adapter(one)

    # the thread

    def _work(self) -> None:
        while (one := self._next()) is not None:
            self._run(one)

    def _next(self) -> Finetuning | None:
        """Waits for the next one and marks it as running; None if the server stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopping or self._waiting())
            if self._is_stopping:
                return None
            self._stop = StopRequest()
            return self._set(self._all[self._waiting()[0]], "running", started=time.time())

    def _run(self, one: Finetuning) -> None:
        """Runs one until it ends, or is to stop."""
        status: FinetuningStatus = "done"
        error = None
        try:
            result = finetune(
                self._stages,
                self._folders.images(one),
                self._folders.out(one),
                one.settings,
                stop=self._stop,
                log=lambda text: logger.info("fine-tuning %s: %s", one.id, text),
            )
            if result.stopped_by:
                status = "queued" if result.stopped_by == _BY_SERVER else "stopped"
            else:
                self._pipeline.check_lora(self._folders.adapter(one))
        except (ConfigError, TrainingError) as failure:
            problems = failure.problems if isinstance(failure, ConfigError) else [str(failure)]
            status, error = "failed", self._folders.without_paths("; ".join(problems), one)
            logger.warning("fine-tuning %s has failed: %s", one.id, failure)
        except Exception as failure:
            status, error = "failed", f"training has failed ({type(failure).__name__}): see the server's log"
            logger.exception("fine-tuning %s has failed", one.id)
        with self._changed:
            self._progress.pop(one.id, None)
            one = self._all[one.id]
            if status == "queued" and one.status == "stopping":  # asked for before the server was
                status = "stopped"
            self._set(one, status, error=error, deaths=0)

    def _set(
        self,
        one: Finetuning,
        status: FinetuningStatus,
        *,
        error: str | None = None,
        queued: float | None = None,
        started: float | None = None,
        deaths: int | None = None,
    ) -> Finetuning:
        """Keeps the new status of one, on the disk if that is possible, and returns it."""
        changed = dataclasses.replace(
            one,
            status=status,
            error=error,
            queued=one.queued if queued is None else queued,
            started=one.started if started is None else started,
            finished=time.time() if status in ENDED else None,
            deaths=one.deaths if deaths is None else deaths,
        )
        with self._changed:
            self._all[one.id] = changed
            try:
                self._folders.save(changed)
            except StorageError as failure:  # training saves by itself, and says so where it cannot
                logger.warning("fine-tuning %s: %s", one.id, failure)
        return changed


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None
