"""The engine of a server: accepts jobs, keeps them, and samples their images by one thread that owns the devices.

A job is accepted once it is on the disk. Its images are sampled in batches with those of other jobs; each is on the
disk before it is marked so, and a job whose images all are is done. After a kill the images that are missing are
sampled, and no others. An image is a function of its prompt, seed and settings: not of what shared its batch, nor of
restarts.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from imagen_jax.errors import ConfigError, is_out_of_space
from imagen_jax.images.grid import save_png
from imagen_jax.io.claims import ClaimedError, claim
from imagen_jax.io.paths import as_path, bucket_path
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.request import SamplingProgress
from imagen_jax.serving.adapter_switch import no_adapters
from imagen_jax.serving.batch_sampler import BatchProgress, BatchSampler, SampledImage
from imagen_jax.serving.compilations import CompilationCounter
from imagen_jax.serving.fair_queue import FairQueue, QueuedJob
from imagen_jax.serving.job_events import EventHub, Subscription
from imagen_jax.serving.jobs import (
    STOP_RETRY_SECONDS,
    EditInputs,
    Event,
    Job,
    JobImage,
    JobRequest,
    QueueFullError,
    Status,
    StorageError,
)
from imagen_jax.serving.plans import STEPS_PER_CALL, JobPlan, make_plan, prepared_index
from imagen_jax.serving.previews import png_base64
from imagen_jax.serving.store import Store, image_name

_ID_BYTES = 12  # 16 characters
_NAME = re.compile(r"([A-Za-z0-9_-]{16})-([0-9]{1,6}|image|mask)\.png")
_DISK_PAUSE_SECONDS = (0.5, 30.0)  # between attempts to write, from the first to the longest
_PREVIEWS = 8  # of each stage, at most about so many
_HASTE = 4.0  # how many times as long as another client's batch one has to take still, to let that one through
_JOIN_SECONDS = 10.0  # for the worker to notice that it is to stop, after the time it was given

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class QueueLimits:
    """How much may wait.

    Attributes:
        images: that wait.
        jobs: that wait.
        client_share: of both that one client may have.
    """

    images: int = 1024
    jobs: int = 512
    client_share: float = 0.5


@dataclasses.dataclass
class _ActiveJob:
    """A job that has not ended: what the worker knows of it.

    Attributes:
        plan: how it is sampled.
        queued: its images that wait.
        done: images that are on the disk.
        sampling: images in the batch that is being sampled.
        progress: see `Engine.progress`.
        position: as it was told last.
    """

    plan: JobPlan
    queued: QueuedJob
    done: int
    sampling: int = 0
    progress: dict[str, Any] | None = None
    position: int | None = None


class _StopSampling(Exception):
    """Nobody waits for the batch any more, or the server stops."""


class Engine:
    """The engine of a server. All methods may be called in any thread.

    Args:
        pipeline: the cascade.
        out: the folder for the database and the images, on a disk.
        batch_sizes: how many images are sampled at once; by default see `default_batch_sizes`.
        limits: of the queue.
        warm_up: whether to compile the programs of the cascade's own settings before the first job.
        lora_path: returns the folder of an adapter that a job asks for, by its id; raises ConfigError if it is gone.

    Raises:
        ConfigError: a batch size is not positive.
    """

    def __init__(
        self,
        pipeline: ImagenPipeline,
        out: str | Path,
        *,
        batch_sizes: Sequence[int] | None = None,
        limits: QueueLimits | None = None,
        warm_up: bool = True,
        lora_path: Callable[[str], Path] = no_adapters,
    ) -> None:
        self._out = as_path(out)
        self._limits = QueueLimits() if limits is None else limits
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline = pipeline
        sizes = default_batch_sizes(pipeline) if batch_sizes is None else batch_sizes
        self._sampler = BatchSampler(pipeline, sizes, lora_path=lora_path)
        self._warm_up = warm_up
        self._hub = EventHub()
        self._compilations = CompilationCounter()
        self._warm_compilations = self._unexpected_compilations = 0
        self._changed = threading.Condition(threading.RLock())
        self._submitting = threading.Lock()
        self._queue, self._active = FairQueue(), dict[str, _ActiveJob]()
        self._numbers = 0
        self._is_ready = self._is_stopping = self._waits_for_disk = False
        self._stop_time = 0.0  # on the monotonic clock
        self._images = 0  # sampled and kept by this process
        self._failed_batches = 0
        self._lent: float | None = None  # seconds that the batch has given others; None while one of them has them
        self._resources = contextlib.ExitStack()
        self._thread: threading.Thread | None = None

    @property
    def ready(self) -> bool:
        """Whether jobs are being taken from the queue."""
        return self._is_ready and not self._is_stopping

    def start(self) -> None:
        """Opens the folder, puts jobs that an earlier process has left back into the queue, and starts the worker.

        Raises:
            ConfigError: another server has the folder, or it cannot be used.
        """
        if bucket_path(self._out) is not None:
            raise ConfigError(
                f"--out {str(self._out)!r} is in a bucket, where a database cannot be: give a folder on a disk"
            )
        try:
            self._resources.enter_context(claim(self._out))
        except ClaimedError as error:
            raise ConfigError(
                f"--out {str(self._out)!r} is in use by another server ({error}): stop it, or give another folder"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"--out {str(self._out)!r} is not writable ({error.strerror}): give another folder"
            ) from error
        try:
            self._store = self._resources.enter_context(contextlib.closing(Store(self._out)))
            self._restore_all()
        except BaseException:
            self._resources.close()
            raise
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def _restore_all(self) -> None:
        """Puts the jobs of an earlier process into the queue."""
        jobs = self._store.recover()
        before = self._store.swap_fact("cascade", self._sampler.cascade)
        if jobs and before not in (None, self._sampler.cascade):
            logger.warning(
                "%d jobs were accepted for another cascade, or other settings of it: they are sampled from this one",
                len(jobs),
            )
        for job in jobs:
            self._restore(job)

    def _restore(self, job: Job) -> None:
        """Puts a job of an earlier process into the queue."""
        try:
            self._enqueue(job, make_plan(self._pipeline, job.request, self._store.inputs(job.id)))
        except ValueError as error:  # it is now another cascade: a ConfigError, or another number of stages
            self._store.finish(job.id, "failed", f"after a restart, the cascade cannot do what the job asks: {error}")

    def stop(self, timeout: float) -> None:
        """Stops the worker: the batch that runs is finished if it can be in time, else put back; then all is closed.

        Jobs that wait are kept for the next start.

        Args:
            timeout: seconds.
        """
        with self._changed:
            self._is_stopping = True
            self._stop_time = time.monotonic() + timeout
            self._changed.notify_all()
        if self._thread is None:
            return
        self._thread.join(timeout + _JOIN_SECONDS)
        self._thread = None
        with self._submitting, self._changed:
            try:
                self._store.put_back(self._active)
            except StorageError as error:
                logger.warning("%s; the next start puts jobs back", error)
            self._resources.close()

    def submit(self, request: JobRequest, client: str, inputs: EditInputs | None = None) -> Job:
        """Adds a job to the queue; on return it is on the disk.

        The same request of a client with the same idempotency key is one job, which is returned.

        Args:
            request: what is asked for.
            client: by whom.
            inputs: what the job edits; it is kept with the job.

        Raises:
            ConfigError: the cascade cannot do what is asked, or the idempotency key is that of another request.
            QueueFullError: the queue has no room.
            StorageError: the job cannot be kept, such as on a full disk.
        """
        plan = make_plan(self._pipeline, request, inputs)
        height, width = plan.program.size
        with self._submitting:
            if self._is_stopping or self._thread is None:
                raise QueueFullError("the server is stopping", STOP_RETRY_SECONDS)
            images = [
                JobImage(index, request.prompt(index), seed, None, width, height)
                for index, seed in enumerate(request.seeds)
            ]
            job_id = secrets.token_urlsafe(_ID_BYTES)
            job = Job(job_id, client, "queued", time.time(), None, None, request, images, None)
            if not self._is_known(request, client):
                self._check_room(plan, client)
            kept = self._store.add(job, inputs)
            if kept.id == job.id:
                self._enqueue(job, plan)
        return kept

    def _is_known(self, request: JobRequest, client: str) -> bool:
        key = request.idempotency_key
        return key is not None and self._store.find_key(client, key) is not None

    def _check_room(self, plan: JobPlan, client: str) -> None:
        """Raises QueueFullError if the queue, or the client's share of it, has no room for a job."""
        limits, images = self._limits, plan.request.images
        with self._changed:
            if not len(self._queue):
                return
            waiting, jobs = self._queue.images(), len(self._queue)
            own = self._queue.images(client)
            excess = max(
                waiting + images - limits.images,
                own + images - limits.images * limits.client_share,
                1 if jobs >= limits.jobs or self._queue.jobs(client) >= limits.jobs * limits.client_share else 0,
            )
            if excess > 0:
                seconds = self._sampler.seconds_for(self._queue.cost() * min(1.0, excess / max(1, waiting)))
                raise QueueFullError(f"{waiting} images of {jobs} jobs wait", max(1.0, seconds))

    def _enqueue(self, job: Job, plan: JobPlan) -> None:
        """Puts the images of a job that do not exist into the queue."""
        pending = collections.deque(image.index for image in job.images if image.file is None)
        with self._changed:
            self._numbers += 1
            queued = QueuedJob(
                job.id, job.client, job.request.priority, self._numbers, plan.program, self._sampler.cost(plan), pending
            )
            # many may wait: what they edit is read again for each batch
            plan = dataclasses.replace(plan, edit=None)
            self._active[job.id] = _ActiveJob(plan, queued, len(job.images) - len(pending))
            self._queue.add(queued)
            self._changed.notify_all()

    def get(self, job_id: str) -> Job | None:
        """Returns a job as it is now; None if there is none of this id."""
        return self._store.get(job_id)

    def position(self, job_id: str) -> int | None:
        """Returns how many jobs are before one in the queue, as it stands now; None if it does not wait."""
        with self._changed:
            return self._positions().get(job_id)

    def _positions(self) -> dict[str, int]:
        return {job_id: position for position, job_id in enumerate(self._queue.order())}

    def progress(self, job_id: str) -> dict[str, Any] | None:
        """Returns where a job is: stage, stages, step, steps, fraction, eta_seconds; None if it does not run."""
        with self._changed:
            active = self._active.get(job_id)
            return None if active is None or active.progress is None else dict(active.progress)

    def cancel(self, job_id: str) -> Job | None:
        """Cancels a job: its images that are not done will not be. Returns it as it is then; None if there is none.

        A batch that has images of other jobs goes on; one that has none ends within some steps.
        """
        self._end(job_id, "canceled")
        return self.get(job_id)

    def _end(self, job_id: str, status: Status, error: str | None = None) -> None:
        """Ends an active job without the rest of its images."""
        with self._changed:
            if self._store.finish(job_id, status, error):
                self._forget(job_id)

    def _forget(self, job_id: str) -> None:
        """Forgets a job that has ended in the database, and tells who follows it."""
        with self._changed:
            self._queue.remove(job_id)
            self._active.pop(job_id, None)
            job = self._store.get(job_id)
        if job is not None:
            self._hub.publish(job_id, Event(job.status, job))

    def events(self, job_id: str, notify: Callable[[], None] | None = None, previews: bool = True) -> Subscription:
        """Returns the events of a job from now on.

        Args:
            job_id: of the job.
            notify: called in any thread when there is one; it must not wait.
            previews: whether previews are among them; where nobody wants any, none are made.
        """
        return self._hub.subscribe(job_id, notify, previews)

    def history(
        self, query: str = "", before: str | None = None, limit: int = 50, client: str | None = None
    ) -> tuple[list[Job], str | None]:
        """Returns a page of all jobs, the newest first, and the cursor of the next page; see `Store.history`."""
        return self._store.history(query, before, limit, client)

    def delete(self, job_id: str) -> bool:
        """Removes a job that has ended, with its images; returns whether it did."""
        return self._store.remove(job_id)

    def image_path(self, name: str) -> Path | None:
        """Returns the path of an image that is done; None if there is none of this name."""
        match = _NAME.fullmatch(name)
        if match is None or not match[2].isdecimal() or name != image_name(match[1], int(match[2])):
            return None
        return self._store.images / name if self._store.has_image(match[1], int(match[2])) else None

    def input_file(self, name: str) -> bytes | None:
        """Returns the PNG file of what a job edits, named `ID-image.png` or `ID-mask.png`; None if there is none."""
        match = _NAME.fullmatch(name)
        return None if match is None or match[2].isdecimal() else self._store.input_file(match[1], match[2])

    def image_owner(self, name: str) -> str | None:
        """Returns whose job an image or an input is of; None if there is none of this name."""
        match = _NAME.fullmatch(name)
        return None if match is None else self._store.owner(match[1])

    def stats(self) -> dict[str, Any]:
        """Returns numbers for monitoring.

        - `ready`: as the property; `waits_for_disk`: whether images cannot be written.
        - `queued`, `queued_jobs`, `clients`: images, jobs and clients that wait.
        - `running_jobs`, `running_images`: in the batch that is being sampled.
        - `jobs`: in the database, by status.
        - `images`: kept by this process; `batches`, `rows`: sampled, with padding; `failed_batches`.
        - `seconds`: the devices were busy; `seconds_per_image`: of the cascade's own settings, as measured last.
        - `compilations`: programs that the worker has compiled, or loaded from the compilation cache;
          `compilations_on_demand`: of them after the warm-up, for other settings or sizes than the cascade's own;
          `compilations_unexpected`: for its own, which the warm-up should have compiled.
        - `subscriptions`: open; `dropped_previews`: that slow ones lost.
        """
        with self._changed:
            running = [active for active in self._active.values() if active.sampling]
            numbers = {
                "ready": self.ready,
                "waits_for_disk": self._waits_for_disk,
                "queued": self._queue.images(),
                "queued_jobs": len(self._queue),
                "clients": self._queue.clients,
                "running_jobs": len(running),
                "running_images": sum(active.sampling for active in running),
            }
        compilations, unexpected = self._compilations.count, self._unexpected_compilations
        warm = self._warm_compilations if self._is_ready else compilations
        return numbers | {
            "jobs": self._store.count(),
            "images": self._images,
            "batches": self._sampler.batches,
            "rows": self._sampler.rows,
            "failed_batches": self._failed_batches,
            "seconds": self._sampler.seconds,
            "seconds_per_image": self._sampler.seconds_for(1.0),
            "compilations": compilations,
            "compilations_on_demand": compilations - warm - unexpected,
            "compilations_unexpected": unexpected,
            "subscriptions": self._hub.count(),
            "dropped_previews": self._hub.dropped_previews,
        }

    def _work(self) -> None:
        """Runs in the worker's thread until the engine stops."""
        with self._compilations:
            if self._warm_up:
                try:
                    self._sampler.warm_up(lambda: not self._is_stopping)
                except Exception:  # jobs of other settings or sizes may still work
                    logger.exception("the cascade's own settings cannot be sampled")
            self._warm_compilations = self._compilations.count
            self._is_ready = True
            while batch := self._next_batch():
                self._lent = 0.0
                self._sample(batch)

    def _next_batch(self) -> list[tuple[QueuedJob, int]]:
        """Waits for images and returns those of the next batch; none if the engine stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopping or len(self._queue))
            if self._is_stopping:
                return []
            batch = self._take()
        self._publish_positions()
        return batch

    def _take(self) -> list[tuple[QueuedJob, int]]:
        """Takes the next batch from the queue."""
        batch = self._queue.take(self._sampler.choose_size)
        for job, _ in batch:
            self._active[job.id].sampling += 1
        return batch

    def _let_through(self, clients: set[str], spent: float, rest: float) -> None:
        """Samples a batch of another client between two steps of one.

        It has to be the other's turn, take far less than the rest, and need nothing compiled. Others get as much time
        as the batch itself has had.

        Args:
            clients: of the batch.
            spent: seconds that the batch has had.
            rest: seconds that it takes still.
        """
        lent = self._lent
        if lent is None:
            return
        with self._changed:
            job = self._queue.first()
            if job is None or job.client in clients or not self._sampler.is_default(job.program):
                return
            longest = self._sampler.seconds_for(min(len(job.pending), self._sampler.sizes[-1]) * job.cost)
            if longest * _HASTE > rest or lent + longest > spent:
                return
            batch = self._take()
        self._publish_positions()
        before, self._lent = self._sampler.seconds, None
        try:
            self._sample(batch)
        finally:
            self._lent = lent + self._sampler.seconds - before

    def _publish_positions(self) -> None:
        """Tells the jobs that wait where they are, if somebody follows them."""
        followed = self._hub.followed()
        with self._changed:
            moved = []
            for job_id, position in self._positions().items():
                active = self._active[job_id]
                if job_id in followed and active.position != position and active.progress is None:
                    active.position = position
                    moved.append((job_id, position))
        for job_id, position in moved:
            self._hub.publish(job_id, Event("queued", {"position": position}))

    def _sample(self, batch: list[tuple[QueuedJob, int]]) -> None:
        """Samples the images of a batch and keeps them; puts them back if the engine stops."""
        jobs = {job.id: job for job, _ in batch}
        with self._changed:
            rows = [(self._active[job.id].plan, index) for job, index in batch if job.id in self._active]
            batch = [(job, index) for job, index in batch if job.id in self._active]
        if not batch:
            return
        compilations = self._compilations.count
        try:
            self._until_written(lambda: self._store.start(jobs), list(jobs))
            rows = self._with_inputs(batch, rows)
            images = self._sampler.sample(rows, lambda progress: self._on_progress(batch, progress))
            self._keep(batch, images)
        except _StopSampling:
            self._put_back(batch)
        except ConfigError as error:
            for job_id in jobs:
                self._fail(job_id, str(error))
        except Exception as error:
            self._on_failure(batch, error)
        finally:
            if self._sampler.is_default(rows[0][0].program):
                self._unexpected_compilations += self._compilations.count - compilations
            with self._changed:
                for job_id in jobs:
                    if job_id in self._active:
                        self._active[job_id].sampling = 0

    def _with_inputs(
        self, batch: list[tuple[QueuedJob, int]], rows: list[tuple[JobPlan, int]]
    ) -> list[tuple[JobPlan, int]]:
        """Returns the rows of a batch with what their jobs edit."""
        plans: dict[tuple[str, int], JobPlan] = {}
        prepared = []
        for (job, _), (plan, index) in zip(batch, rows, strict=True):
            key = (job.id, prepared_index(plan.request, index))
            if plan.request.edit is not None and key not in plans:
                plans[key] = make_plan(self._pipeline, plan.request, self._store.inputs(job.id), key[1])
            prepared.append((plans.get(key, plan), index))
        return prepared

    def _on_progress(self, batch: list[tuple[QueuedJob, int]], progress: BatchProgress) -> None:
        """Tells who follows the jobs of a batch. Raises _StopSampling if nobody waits for it, or the engine stops."""
        rows = collections.defaultdict(list)
        with self._changed:
            for row, (job, index) in enumerate(batch):
                if job.id in self._active:
                    rows[job.id].append((row, index))
            cost = sum(job.cost for job, _ in batch)
            seconds = self._sampler.seconds_for(cost)
            spent, rest = seconds * progress.fraction, seconds * (1 - progress.fraction)
            if not rows or (self._is_stopping and time.monotonic() + rest > self._stop_time):
                raise _StopSampling
            for job_id, members in rows.items():
                self._active[job_id].progress = self._job_progress(job_id, progress, len(members), rest)
        followed = rows.keys() & self._hub.followed()
        # what the safety checker has not seen yet is not shown
        previewed = set() if self._pipeline.safety_checker else rows.keys() & self._hub.previewed()
        previews = progress.sampling.preview() if previewed and _is_shown(progress.sampling) else None
        for job_id in followed:
            where = self.progress(job_id)
            if where is None:
                continue
            self._hub.publish(job_id, Event("step", where))
            if previews is None or job_id not in previewed:
                continue
            images = [{"index": index, "png": png_base64(previews[row])} for row, index in rows[job_id]]
            self._hub.publish(
                job_id, Event("preview", {"stage": where["stage"], "step": where["step"], "images": images})
            )
        if not self._is_stopping:
            self._let_through({job.client for job, _ in batch}, spent, rest)

    def _job_progress(self, job_id: str, progress: BatchProgress, images: int, rest: float) -> dict[str, Any]:
        """Returns where a job is, of which so many images are in a batch that takes `rest` seconds more."""
        active, sampling = self._active[job_id], progress.sampling
        waiting = len(active.queued.pending) if job_id in self._queue else 0
        # other clients take their turns
        turns = max(1, self._queue.clients) if waiting else 1
        eta = rest + self._sampler.seconds_for(waiting * active.queued.cost * turns)
        return {
            "stage": sampling.stage,
            "stages": len(active.plan.stage_costs),
            "step": sampling.step,
            "steps": sampling.steps,
            "fraction": (active.done + images * progress.fraction) / active.plan.request.images,
            "eta_seconds": round(eta, 3),
        }

    def _keep(self, batch: list[tuple[QueuedJob, int]], images: list[SampledImage]) -> None:
        """Writes the images of a batch, and marks those jobs as done that have all of theirs."""
        kept: dict[tuple[str, int], bool] = {}
        for (job, index), sampled in zip(batch, images, strict=True):
            path = self._store.images / image_name(job.id, index)
            if self._until_written(functools.partial(save_png, sampled.image, path, sampled.texts), [job.id]):
                kept[job.id, index] = sampled.flagged
        done: list[str] = []
        self._until_written(lambda: done.extend(self._store.add_images(kept)), [job_id for job_id, _ in kept])
        self._tell_kept(list(kept))
        for job_id in done:
            self._forget(job_id)

    def _tell_kept(self, kept: list[tuple[str, int]]) -> None:
        """Counts images that are kept, and tells who follows their jobs; deletes those of jobs that were canceled."""
        followed = self._hub.followed()
        for job_id, index in kept:
            with self._changed:
                active = self._active.get(job_id)
                if active is None:
                    if not self._store.has_image(job_id, index):
                        (self._store.images / image_name(job_id, index)).unlink(missing_ok=True)
                    continue
                active.done += 1
                self._images += 1
            if job_id in followed and (job := self._store.get(job_id)) is not None:
                self._hub.publish(job_id, Event("image", job.images[index]))

    def _until_written(self, write: Callable[[], object], job_ids: Sequence[str]) -> bool:
        """Writes; waits while the disk is full or fails, and tries again.

        Returns:
            Whether it is written; not if all these jobs were canceled meanwhile.

        Raises:
            _StopSampling: the engine stops.
        """
        pause, longest = _DISK_PAUSE_SECONDS
        while True:
            try:
                write()
                self._waits_for_disk = False
                return True
            except (OSError, StorageError) as error:
                if not self._waits_for_disk:
                    what = "the disk is full" if is_out_of_space(error) else f"it cannot be written to ({error})"
                    logger.warning("%s: %s; images wait until there is room", self._out, what)
            self._waits_for_disk = True
            with self._changed:
                gone = self._changed.wait_for(
                    lambda: self._is_stopping or not any(job_id in self._active for job_id in job_ids), pause
                )
                if self._is_stopping:
                    raise _StopSampling
            if gone:
                return False
            pause = min(2 * pause, longest)

    def _put_back(self, batch: list[tuple[QueuedJob, int]]) -> None:
        """Puts the images of a batch back into the queue."""
        with self._changed:
            for job, index in batch:
                if job.id in self._active:
                    self._queue.put_back(job, [index])
                    self._active[job.id].progress = None

    def _on_failure(self, batch: list[tuple[QueuedJob, int]], error: Exception) -> None:
        """Fails a job whose batch has failed; jobs that shared it are tried again, each alone."""
        self._failed_batches += 1
        logger.warning("a batch of %d images has failed", len(batch), exc_info=error)
        jobs = {job.id: job for job, _ in batch}
        if len(jobs) == 1:
            self._fail(next(iter(jobs)), f"sampling has failed ({type(error).__name__}): see the server's log")
            return
        for job in jobs.values():
            job.alone = True
        self._put_back(batch)

    def _fail(self, job_id: str, error: str) -> None:
        with contextlib.suppress(_StopSampling):
            self._until_written(lambda: self._end(job_id, "failed", error), [job_id])


def _is_shown(sampling: SamplingProgress) -> bool:
    """Returns whether there is a preview of this step: of about eight in each stage, and of its last one."""
    every = max(STEPS_PER_CALL, sampling.steps // _PREVIEWS)
    return sampling.step == sampling.steps or sampling.step // every > (sampling.step - STEPS_PER_CALL) // every


def default_batch_sizes(pipeline: ImagenPipeline) -> tuple[int, ...]:
    """Returns how many images are sampled at once."""
    return (1, 4, 16) if pipeline.mesh.devices.flat[0].platform == "cpu" else (8,)
