"""Events of a job for HTTP: as an asynchronous iterator, and as server-sent events (WHATWG HTML, Section 9.2)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from imagen_jax.serving.finetuning_views import finetuning_view
from imagen_jax.serving.finetunings import ENDED
from imagen_jax.serving.jobs import FINAL, Job, JobImage
from imagen_jax.serving.service import Service
from imagen_jax.serving.views import image_view

_HEARTBEAT = b": still here\n\n"
_LOOK_SECONDS = 1.0  # between looks at the files of a fine-tuning
_RETRY = b"retry: 2000\n\n"  # milliseconds after which a browser connects anew


class Events:
    """The events of a job from now on; no thread waits for them.

    Args:
        service: with the engine.
        job_id: of the job.
        previews: whether previews are among them.
    """

    def __init__(self, service: Service, job_id: str, previews: bool = True) -> None:
        self._closing = service.closing
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._subscription = service.engine.events(job_id, notify=self._notify, previews=previews)

    def _notify(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._ready.set)

    async def next(self, timeout: float) -> Any:
        """Returns the next event; None if there is none within `timeout` seconds, or the server stops."""
        while True:
            self._ready.clear()
            event = self._subscription.get(timeout=0)
            if event is not None:
                return event
            if not await _wait_any(timeout, self._ready, self._closing) or self._closing.is_set():
                return self._subscription.get(timeout=0)

    def close(self) -> None:
        """Ends the subscription."""
        self._subscription.close()


async def _wait_any(timeout: float, *events: asyncio.Event) -> bool:
    """Waits for any of some events; returns whether one of them came in time."""
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for task in tasks:
            task.cancel()


async def server_sent(service: Service, job: Job) -> AsyncIterator[bytes]:
    """Yields the state of a job and then its events, as server-sent events, until it or the server ends."""
    events = Events(service, job.id)
    try:
        # after the subscription: nothing is missed between the two
        current = await run_in_threadpool(service.engine.get, job.id) or job
        yield _RETRY + _encode("job", service.view(current).model_dump())
        if current.status in FINAL:
            yield _encode(current.status, service.view(current).model_dump())
            return
        while not service.closing.is_set():
            event = await events.next(service.limits.heartbeat_seconds)
            if event is None:
                yield _HEARTBEAT
                continue
            yield _encode(event.name, _data(service, event.data))
            if event.name in FINAL:
                return
    finally:
        events.close()


async def server_sent_finetuning(service: Service, client: str, finetuning_id: str) -> AsyncIterator[bytes]:
    """Yields a fine-tuning, and again whenever it has changed, as server-sent events, until it or the server ends."""
    mine, before, silence = service.finetuner_for(client), b"", 0.0
    yield _RETRY
    while not service.closing.is_set():
        one = mine.finetuner.get(finetuning_id)
        if one is None:
            yield _encode("deleted", {"id": finetuning_id})
            return
        view = await run_in_threadpool(finetuning_view, service, one)
        now = _encode("finetuning", view.model_dump())
        if now != before:
            yield now
            before, silence = now, 0.0
        if one.status in ENDED:
            yield _encode(one.status, view.model_dump())
            return
        if silence >= service.limits.heartbeat_seconds:
            yield _HEARTBEAT
            silence = 0.0
        await _wait_any(_LOOK_SECONDS, service.closing)
        silence += _LOOK_SECONDS


def _data(service: Service, data: Any) -> Any:
    """Returns the data of an event as clients see it."""
    if isinstance(data, Job):
        return service.view(data).model_dump()
    if isinstance(data, JobImage):
        return image_view(data, service.tokens).model_dump()
    return data


def _encode(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=True, allow_nan=False)}\n\n".encode()


def event_response(service: Service, client: str, events: AsyncIterator[bytes]) -> StreamingResponse:
    """Returns the response that streams events to a client. Raises HttpError if there are too many streams."""
    slot = contextlib.ExitStack()
    slot.enter_context(service.stream(client))

    async def stream() -> AsyncIterator[bytes]:
        with slot:
            async for part in events:
                yield part

    # for proxies: events are to be passed on at once
    headers = {"x-accel-buffering": "no", "cache-control": "no-store"}
    return _Stream(stream(), slot, headers)


class _Stream(StreamingResponse):
    """A stream of events that gives its slot back, also where the client left before it began."""

    def __init__(self, content: AsyncIterator[bytes], slot: contextlib.ExitStack, headers: dict[str, str]) -> None:
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._content, self._slot = content, slot

    async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        """Sends the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._content.aclose()  # type: ignore[attr-defined]
            self._slot.close()
