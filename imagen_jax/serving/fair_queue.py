"""The order of the work: fair between clients, by priority within one, and batches of what one program can sample.

Clients take turns by fair queueing (Goyal et al., SIGCOMM 1996): each has a virtual time, which grows by the cost of
what it gets, and the one is next whose time would be lowest after its next image. So of two clients that have had as
much, that with the cheaper image is first, which keeps the other waiting for less. One that was idle begins at the
lowest time of the others, so that it has no credit for its absence. Not for several threads: the engine's lock guards
it.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# (program, cost of an image, how many wait) -> how many of them make the next batch
ChooseSize = Callable[[Any, float, int], int]


@dataclasses.dataclass
class QueuedJob:
    """The images of a job that are not sampled yet.

    Attributes:
        id: of the job.
        client: whose it is.
        priority: the client's jobs with a higher one are first.
        number: jobs of the same priority are in its order.
        program: images of the same program can share a batch.
        cost: of an image, in images of the cascade's own settings.
        pending: indices of the images, in order.
        alone: whether it shares no batch, because one with it has failed.
    """

    id: str
    client: str
    priority: int
    number: int
    program: Any
    cost: float
    pending: collections.deque[int]
    alone: bool = False

    @property
    def rank(self) -> tuple[int, int]:
        """Where it is among the jobs of its client."""
        return -self.priority, self.number


class FairQueue:
    """The jobs that wait, or have images that do."""

    def __init__(self) -> None:
        self._jobs: dict[str, QueuedJob] = {}
        self._by_client: dict[str, list[QueuedJob]] = {}  # in the order of their rank
        self._times: dict[str, float] = {}  # virtual time of each client that has jobs, or had some lately
        self._now = 0.0

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def images(self, client: str | None = None) -> int:
        """Returns how many images wait, of one client or of all."""
        jobs: Iterable[QueuedJob] = self._jobs.values() if client is None else self._by_client.get(client, ())
        return sum(len(job.pending) for job in jobs)

    def jobs(self, client: str) -> int:
        """Returns how many jobs of a client wait."""
        return len(self._by_client.get(client, ()))

    @property
    def clients(self) -> int:
        """The number of clients that have jobs here."""
        return len(self._by_client)

    def cost(self) -> float:
        """Returns the cost of all images that wait."""
        return sum(len(job.pending) * job.cost for job in self._jobs.values())

    def add(self, job: QueuedJob) -> None:
        """Adds a job with images."""
        self._jobs[job.id] = job
        jobs = self._by_client.setdefault(job.client, [])
        jobs.append(job)
        jobs.sort(key=lambda other: other.rank)
        self._times[job.client] = max(self._times.get(job.client, 0.0), self._now)

    def put_back(self, job: QueuedJob, indices: Iterable[int]) -> None:
        """Puts images back that `take` has returned, before the others of their job."""
        job.pending = collections.deque(sorted({*job.pending, *indices}))
        if job.pending and job.id not in self._jobs:
            self.add(job)

    def remove(self, job_id: str) -> QueuedJob | None:
        """Removes a job with all its images; returns it, or None if it has none here."""
        job = self._jobs.pop(job_id, None)
        if job is not None:
            self._by_client[job.client].remove(job)
            if not self._by_client[job.client]:
                del self._by_client[job.client]
        return job

    def take(self, choose_size: ChooseSize) -> list[tuple[QueuedJob, int]]:
        """Takes the images of the next batch: that of the client whose turn it is, and what fits to it.

        Args:
            choose_size: returns how many images to take.

        Returns:
            (job, index of the image) of each; none if the queue is empty.
        """
        first = self.first()
        if first is None:
            return []
        self._now = min(self._times[client] for client in self._by_client)
        if first.alone:
            return [self._take_one(first) for _ in range(choose_size(first.program, first.cost, len(first.pending)))]
        similar = [job for job in self._jobs.values() if job.program == first.program and not job.alone]
        size = choose_size(first.program, first.cost, sum(len(job.pending) for job in similar))
        batch: list[tuple[QueuedJob, int]] = []
        while len(batch) < size:
            candidates = [
                job
                for jobs in self._by_client.values()
                if (job := next((job for job in jobs if job.program == first.program and not job.alone), None))
            ]
            batch.append(self._take_one(self._next(candidates)))
        # times of clients that are gone are kept until all others have caught up
        self._times = {
            client: time for client, time in self._times.items() if client in self._by_client or time > self._now
        }
        return batch

    def first(self) -> QueuedJob | None:
        """Returns the job whose turn it is; None if the queue is empty."""
        return self._next([jobs[0] for jobs in self._by_client.values()]) if self._jobs else None

    def _next(self, jobs: Iterable[QueuedJob]) -> QueuedJob:
        """Returns the job, of one for each client, whose client is next; of several, the oldest."""
        return min(jobs, key=lambda job: (self._times[job.client] + job.cost, job.number))

    def _take_one(self, job: QueuedJob) -> tuple[QueuedJob, int]:
        index = job.pending.popleft()
        self._times[job.client] += job.cost
        if not job.pending:
            self.remove(job.id)
        return job, index

    def order(self) -> Iterator[str]:
        """Yields the ids of all jobs, in the order in which they begin if nothing is added."""
        times = {client: self._times[client] for client in self._by_client}
        jobs = {client: collections.deque(jobs) for client, jobs in self._by_client.items()}
        while jobs:
            client = min(jobs, key=lambda client: (times[client] + jobs[client][0].cost, jobs[client][0].number))
            job = jobs[client].popleft()
            times[client] += job.cost * len(job.pending)
            if not jobs[client]:
                del jobs[client]
            yield job.id
