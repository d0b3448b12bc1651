"""What all routes share: the engine, who may use it, and which streams are open."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from fastapi import Request

from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.serving.auth import Tokens
from imagen_jax.serving.edits import read_files, with_edit
from imagen_jax.serving.engine import Engine
from imagen_jax.serving.http_errors import HttpError, stopping_error
from imagen_jax.serving.http_limits import HttpLimits
from imagen_jax.serving.jobs import EditInputs, Job, JobRequest, QueueFullError, StorageError
from imagen_jax.serving.metrics import HttpMetrics
from imagen_jax.serving.requests import EditBody
from imagen_jax.serving.views import JobView, job_view


@dataclasses.dataclass
class Service:
    """The engine and what surrounds it.

    Attributes:
        engine: that does the work.
        pipeline: the cascade that it samples from.
        name: of the cascade, as clients see it.
        examples: prompts to begin with.
        tokens: that clients need.
        limits: of requests.
        metrics: of HTTP.
    """

    engine: Engine
    pipeline: ImagenPipeline
    name: str
    examples: Sequence[str]
    tokens: Tokens
    limits: HttpLimits
    metrics: HttpMetrics

    def __post_init__(self) -> None:
        self.started = time.time()
        self.closing = asyncio.Event()
        self._streams: Counter[str] = Counter()

    def begin_stop(self) -> None:
        """Ends event streams and refuses new jobs; called in the event loop."""
        self.closing.set()

    def stop(self, timeout: float) -> None:
        """Finishes what runs, or puts it back."""
        self.engine.stop(timeout)

    def submit(self, request: JobRequest, client: str, inputs: EditInputs | None = None) -> Job:
        """Adds a job to the queue, or returns the one that the same request has added before.

        Raises:
            HttpError: the queue or the disk is full, or the server is stopping.
            ConfigError: the cascade cannot do what is asked.
        """
        if self.closing.is_set():
            raise stopping_error()
        try:
            return self.engine.submit(request, client, inputs)
        except QueueFullError as error:
            seconds = max(1, round(error.retry_after))
            raise HttpError(
                429,
                f"the queue is full: try again in {seconds} seconds",
                code="queue_full",
                headers={"retry-after": str(seconds)},
            ) from error
        except StorageError as error:
            raise HttpError(503, str(error), code="storage", headers={"retry-after": "60"}) from error

    def find(self, job_id: str, client: str) -> Job:
        """Returns a job. Raises HttpError if there is none, or it belongs to another client with a token of its own."""
        job = self.engine.get(job_id)
        if job is None or not self.may_see(job, client):
            raise HttpError(
                404, "there is no job of this id: /v1/history lists those that there are", code="no_such_job"
            )
        return job

    def edit(self, request: JobRequest, body: EditBody, client: str) -> tuple[JobRequest, EditInputs | None]:
        """Returns a request that edits, and what it edits. Raises HttpError and ConfigError, see `with_edit`."""
        files = read_files(body, lambda name: self._find_file(name, client))
        return with_edit(request, body, files, self.pipeline, self.limits)

    def _find_file(self, name: str, client: str) -> bytes | None:
        """Returns the file of an image, or of what a job edits, by its name; None if there is none that is seen."""
        if not self.may_see_image(name, client):
            return None
        path = self.engine.image_path(name)
        return self.engine.input_file(name) if path is None else path.read_bytes()

    def may_see_image(self, name: str, client: str) -> bool:
        """Returns whether a client may see an image, as `may_see`."""
        return not self.tokens.are_several or self.engine.image_owner(name) == client

    def may_see(self, job: Job, client: str) -> bool:
        """Returns whether a client may see a job: where each has a token of its own, it sees its own alone."""
        return not self.tokens.are_several or job.client == client

    def view(self, job: Job) -> JobView:
        """Returns a job as clients see it."""
        position = self.engine.position(job.id) if job.status == "queued" else None
        progress = self.engine.progress(job.id) if job.status == "running" else None
        return job_view(job, self.tokens, position, progress)

    @contextlib.contextmanager
    def stream(self, client: str) -> Iterator[None]:
        """Counts an event stream while it is open. Raises HttpError if there are too many."""
        if self.closing.is_set():
            raise stopping_error()
        if self._streams[client] >= self.limits.streams_per_client or self._streams.total() >= self.limits.streams:
            whose = "this client has" if self._streams[client] >= self.limits.streams_per_client else "all clients have"
            raise HttpError(
                429,
                f"{whose} as many event streams open as are allowed: close some, or ask GET /v1/jobs/ID instead",
                code="too_many_streams",
                headers={"retry-after": "5"},
            )
        self._streams[client] += 1
        self.metrics.streams.inc()
        try:
            yield
        finally:
            self._streams[client] -= 1
            if not self._streams[client]:
                del self._streams[client]
            self.metrics.streams.dec()


def client_of(request: Request) -> str:
    """Returns the name of the client that the guard has found."""
    return str(request.state.client)
