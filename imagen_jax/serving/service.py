"""What all routes share: the engine, who may use it, and which streams are open."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastapi import Request

from imagen_jax.errors import unknown_name_error
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.serving.auth import Tokens
from imagen_jax.serving.edits import read_files, with_edit
from imagen_jax.serving.engine import Engine
from imagen_jax.serving.finetuner import Finetuner, WrongStatusError
from imagen_jax.serving.finetunings import Finetuning, UploadedSubject
from imagen_jax.serving.http_errors import HttpError, shown, stopping_error
from imagen_jax.serving.http_limits import HttpLimits
from imagen_jax.serving.jobs import EditInputs, Job, JobRequest, LoraChoice, QueueFullError, StorageError
from imagen_jax.serving.metrics import HttpMetrics
from imagen_jax.serving.requests import EditBody, LoraBody, check_range
from imagen_jax.serving.views import JobView, job_view
from imagen_jax.training.finetune import FinetuneSettings

_MAX_LORA = 4  # adapters of a job
_MAX_SCALE = 10.0


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
        finetuner: teaches the cascade from images; None where the server does not.
    """

    engine: Engine
    pipeline: ImagenPipeline
    name: str
    examples: Sequence[str]
    tokens: Tokens
    limits: HttpLimits
    metrics: HttpMetrics
    finetuner: Finetuner | None = None

    def __post_init__(self) -> None:
        self.started = time.time()
        self.closing = asyncio.Event()
        self._streams: Counter[str] = Counter()

    def begin_stop(self) -> None:
        """Ends event streams and refuses new jobs; called in the event loop."""
        self.closing.set()

    def stop(self, timeout: float) -> None:
        """Finishes what runs, or puts it back."""
        ends = time.monotonic() + timeout
        if self.finetuner is not None:
            self.finetuner.ask_to_stop()
        self.engine.stop(timeout)
        if self.finetuner is not None:
            self.finetuner.stop(max(0.0, ends - time.monotonic()))

    def submit(self, request: JobRequest, client: str, inputs: EditInputs | None = None) -> Job:
        """Adds a job to the queue, or returns the one that the same request has added before.

        Raises:
            HttpError: the queue or the disk is full, or the server is stopping.
            ConfigError: the cascade cannot do what is asked.
        """
        if self.closing.is_set():
            raise stopping_error()
        with _as_http_errors():
            return self.engine.submit(request, client, inputs)

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

    def with_lora(self, request: JobRequest, lora: Sequence[LoraBody] | None, client: str) -> JobRequest:
        """Returns a request with adapters, those of a client's fine-tunings that are done.

        Raises:
            HttpError: there is none of a name, or one is asked for twice or cannot be used.
        """
        if not lora:
            return request
        check_range("the number of adapters in lora", len(lora), 1, _MAX_LORA)
        usable = {} if self.finetuner is None else self._usable_adapters(self.finetuner, client)
        chosen: list[LoraChoice] = []
        for index, asked in enumerate(lora):
            name = f"lora[{index}]"
            if self.finetuner is None:
                text = f"{name} cannot be used: this server has no adapters, as it was started without --finetune_dir"
                raise HttpError(400, text, name)
            if asked.name not in usable:
                raise HttpError(400, unknown_name_error(f"{name}.name", asked.name[:80], usable).problems[0], name)
            if any(choice.name == asked.name for choice in chosen):
                raise HttpError(400, f"{name}.name is {asked.name!r} once more: give each adapter once", name)
            if not abs(asked.scale) <= _MAX_SCALE:
                text = f"{name}.scale is {shown(asked.scale)}: give a number from -{_MAX_SCALE:g} to {_MAX_SCALE:g}"
                raise HttpError(400, text, name)
            chosen.append(LoraChoice(usable[asked.name], asked.name, float(asked.scale)))
        return dataclasses.replace(request, lora=chosen)

    def _usable_adapters(self, finetuner: Finetuner, client: str) -> dict[str, str]:
        """Returns the ids of the fine-tunings whose adapters a client can use, by name, the newest first."""
        own = client if self.tokens.are_several else None
        done = [one for one in finetuner.all_of(own) if one.status == "done" and finetuner.problem(one) is None]
        return {one.name: one.id for one in reversed(done)}

    def finetuner_for(self, client: str) -> ClientFinetuner:
        """Returns what a client may do with fine-tunings. Raises HttpError if this server does none."""
        if self.finetuner is None:
            text = "this server teaches nothing new: it was started without --finetune_dir=DIR"
            raise HttpError(404, text, code="finetuning_is_off")
        return ClientFinetuner(self.finetuner, client, self.tokens.are_several)

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


@dataclasses.dataclass(frozen=True)
class ClientFinetuner:
    """The fine-tunings of a server as a client may use them; where each has a token of its own, its own alone."""

    finetuner: Finetuner
    client: str
    only_own: bool

    def all(self) -> list[Finetuning]:
        """Returns all, the newest first."""
        return self.finetuner.all_of(self.client if self.only_own else None)

    def find(self, finetuning_id: str) -> Finetuning:
        """Returns one. Raises HttpError if there is none, or it belongs to another client."""
        one = self.finetuner.get(finetuning_id)
        if one is None or (self.only_own and one.client != self.client):
            text = "there is no fine-tuning of this id: /v1/finetunings lists those that there are"
            raise HttpError(404, text, code="no_such_finetuning")
        return one

    def add(self, settings: FinetuneSettings, images: Sequence[UploadedSubject]) -> Finetuning:
        """Adds one. Raises HttpError if too many wait, the disk is full, or the server is stopping."""
        with _as_http_errors():
            return self.finetuner.add(settings, images, self.client)

    def end(self, finetuning_id: str) -> Finetuning:
        """Stops one. Raises HttpError if there is none, or it has ended."""
        with _as_http_errors():
            return self.finetuner.end(self.find(finetuning_id).id)

    def resume(self, finetuning_id: str) -> Finetuning:
        """Continues one. Raises HttpError if there is none, or it has not ended, or is done."""
        with _as_http_errors():
            return self.finetuner.resume(self.find(finetuning_id).id)

    def remove(self, finetuning_id: str) -> None:
        """Deletes one. Raises HttpError if there is none, or it runs."""
        with _as_http_errors():
            self.finetuner.remove(self.find(finetuning_id).id)

    def archive_path(self, one: Finetuning) -> Path | None:
        """Returns the path of the adapter as a ZIP file; None if there is none. Raises HttpError for a full disk."""
        with _as_http_errors():
            return self.finetuner.archive_path(one)


@contextlib.contextmanager
def _as_http_errors() -> Iterator[None]:
    """Turns errors of the engine and the finetuner into HttpError."""
    try:
        yield
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
    except WrongStatusError as error:
        raise HttpError(409, str(error), code="wrong_status") from error


def client_of(request: Request) -> str:
    """Returns the name of the client that the guard has found."""
    return str(request.state.client)
