"""The events of jobs, from the worker to whoever follows: bounded, and never waited for."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable

from imagen_jax.serving.jobs import Event

_LATEST = ("queued", "step", "preview")  # of these, one that was not fetched yet is replaced by the next one
_STEP_SECONDS = 0.1  # between two steps that readers of a job are told of, at least
_STEP_SECONDS_PER_READER = 0.001  # the same: with many, they would keep the server from all else


class Subscription:
    """The events of a job from now on; for one reader.

    A slow reader loses what newer events replace: previews, steps and positions. Images and the end it always gets.

    Args:
        hub: that it is of.
        job_id: of the job.
        notify: called when there is an event, in any thread; it must not wait.
        previews: whether the reader wants previews, which cost time to make.
    """

    def __init__(self, hub: EventHub, job_id: str, notify: Callable[[], None] | None, previews: bool) -> None:
        self._hub, self._job_id, self._notify, self.previews = hub, job_id, notify, previews
        self._events: collections.OrderedDict[object, Event] = collections.OrderedDict()
        self._changed = threading.Condition()
        self._is_closed = False

    def get(self, timeout: float | None = None) -> Event | None:
        """Returns the next event; None if there is none within `timeout` seconds, or it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._is_closed, timeout)
            return self._events.popitem(last=False)[1] if self._events else None

    def put(self, event: Event) -> bool:
        """Adds an event; returns whether one that was not fetched was replaced."""
        is_latest = event.name in _LATEST
        with self._changed:
            if self._is_closed or (event.name == "preview" and not self.previews):
                return False
            is_replaced = is_latest and self._events.pop(event.name, None) is not None
            self._events[event.name if is_latest else object()] = event
            self._changed.notify()
        if self._notify is not None:
            self._notify()
        return is_replaced

    def close(self) -> None:
        """Ends it; `get` returns None from then on."""
        self._hub.remove(self._job_id, self)
        with self._changed:
            self._is_closed = True
            self._events.clear()
            self._changed.notify_all()


class EventHub:
    """All subscriptions, by job. Of steps that follow each other fast, readers are told of some, and of the last."""

    def __init__(self) -> None:
        self.dropped_previews = 0
        self._lock = threading.Lock()
        self._by_job: dict[str, list[Subscription]] = {}
        self._step_times: dict[str, float] = {}  # when a step of a job was told last, on the monotonic clock

    def subscribe(self, job_id: str, notify: Callable[[], None] | None = None, previews: bool = True) -> Subscription:
        """Returns the events of a job from now on."""
        subscription = Subscription(self, job_id, notify, previews)
        with self._lock:
            self._by_job.setdefault(job_id, []).append(subscription)
        return subscription

    def remove(self, job_id: str, subscription: Subscription) -> None:
        """Forgets a subscription."""
        with self._lock:
            others = [other for other in self._by_job.get(job_id, []) if other is not subscription]
            if others:
                self._by_job[job_id] = others
            else:
                self._by_job.pop(job_id, None)
                self._step_times.pop(job_id, None)

    def followed(self) -> set[str]:
        """Returns the ids of the jobs that anybody follows."""
        with self._lock:
            return set(self._by_job)

    def previewed(self) -> set[str]:
        """Returns the ids of the jobs of which anybody wants previews."""
        with self._lock:
            return {job_id for job_id, all_of in self._by_job.items() if any(each.previews for each in all_of)}

    def publish(self, job_id: str, event: Event) -> None:
        """Passes an event on to all who follow a job."""
        with self._lock:
            subscriptions = list(self._by_job.get(job_id, []))
            if event.name == "step" and subscriptions:
                now = time.monotonic()
                pause = max(_STEP_SECONDS, _STEP_SECONDS_PER_READER * len(subscriptions))
                if now < self._step_times.get(job_id, 0.0) + pause and event.data["step"] < event.data["steps"]:
                    return
                self._step_times[job_id] = now
        for subscription in subscriptions:
            self.dropped_previews += subscription.put(event) and event.name == "preview"

    def count(self) -> int:
        """Returns the number of subscriptions."""
        with self._lock:
            return sum(map(len, self._by_job.values()))
