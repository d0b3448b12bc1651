"""Events of a job for HTTP: as an asynchronous iterator, and as server-sent events (WHATWG HTML, Section 9.2)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.concurrency import run_in_threadpool

from imagen_jax.serving.jobs import FINAL, Job, JobImage
from imagen_jax.serving.service import Service
from imagen_jax.serving.views import image_view

_HEARTBEAT = b": still here\n\n"
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


def _data(service: Service, data: Any) -> Any:
    """Returns the data of an event as clients see it."""
    if isinstance(data, Job):
        return service.view(data).model_dump()
    if isinstance(data, JobImage):
        return image_view(data, service.tokens).model_dump()
    return data


def _encode(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=True, allow_nan=False)}\n\n".encode()
