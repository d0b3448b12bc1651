"""Measure the server under load, as in docs/serving.md: `python -m benchmarks.serving.load --stages=shapes`.

Clients have addresses of their own (127.0.0.2 and following), so that the server tells them apart. First few of them
ask for one image after the other; then many ask at random times, independent of the answers, at the rate that the
server has just been measured to serve, and at a multiple of it. A request is one image; its latency is the time from
the request to the event that says that it is done. After each phase every accepted job is looked up: it must be done,
with one image, and be in the history once; some images are compared to the bit with those that the pipeline samples.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import itertools
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import numpy as np
from absl import flags
from PIL import Image

from benchmarks import app
from benchmarks.serving.server import Server, running
from imagen_jax.cli.flags import CommandFlags

CLOSED = (1, 4, 16)  # clients, each of which waits for its image before it asks for the next
CAPACITY_CLIENTS = 64
COMPARED = 20  # images
COLORS, SHAPES = ("red", "green", "blue", "yellow", "purple"), ("circle", "square", "triangle", "cross", "ring")
COMPILATIONS = "imagen_compilations_total"


@dataclasses.dataclass
class Tally:
    """What became of the requests of a phase; latencies are in seconds, memory in bytes."""

    seconds: float = 0.0
    sent: int = 0
    accepted: dict[str, tuple[str, int]] = dataclasses.field(default_factory=dict)  # id to (prompt, seed)
    latencies: list[float] = dataclasses.field(default_factory=list)
    refused: int = 0
    without_retry_after: int = 0
    other: Counter[str] = dataclasses.field(default_factory=Counter)
    memory: list[int] = dataclasses.field(default_factory=list)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    flags.DEFINE_string("stages", "shapes", "The cascade, as for imagen serve.", flag_values=values)
    flags.DEFINE_integer("clients", 200, "Clients under load.", lower_bound=1, upper_bound=250, flag_values=values)
    flags.DEFINE_float("seconds", 300.0, "How long each rate is held.", lower_bound=1, flag_values=values)
    flags.DEFINE_float("closed_seconds", 30.0, "How long each of the first phases lasts.", flag_values=values)
    flags.DEFINE_list("rates", ["1", "3"], "Rates, in multiples of the measured one.", flag_values=values)


def run(args: CommandFlags) -> None:
    """Runs all phases, and prints tables."""
    with tempfile.TemporaryDirectory() as name, running(args.stages, Path(name) / "out") as server:
        compiled = server.metric(COMPILATIONS)
        print("| clients, one image after the other | images/s | ratio |\n|---|---|---|")
        first = None
        for clients in (*CLOSED, CAPACITY_CLIENTS):
            tally = asyncio.run(_closed(server, clients, args.closed_seconds))
            _check(server, tally, args.stages, 0)
            rate = len(tally.latencies) / tally.seconds
            first = first or rate
            print(f"| {clients} | {rate:.2f} | {rate / first:.2f} |", flush=True)
        print("\n| rate | sent | accepted | refused | other | p50 | p95 | p99 | memory | images compared |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for multiple in map(float, args.rates):
            tally = asyncio.run(_open(server, args.clients, multiple * rate, args.seconds))
            same = _check(server, tally, args.stages, COMPARED)
            print(_row(f"{multiple:g} × {rate:.1f}/s", tally, same), flush=True)
        print(f"\nprograms compiled since the server was ready: {server.metric(COMPILATIONS) - compiled:.0f}")


def _row(name: str, tally: Tally, same: int) -> str:
    p50, p95, p99 = np.percentile(tally.latencies, (50, 95, 99))
    memory = " → ".join(f"{value / 2**20:.0f}" for value in (tally.memory[0], max(tally.memory), tally.memory[-1]))
    other = ", ".join(f"{count} × {what}" for what, count in tally.other.items()) or "0"
    return (
        f"| {name} | {tally.sent:,} | {len(tally.accepted):,} | {tally.refused:,} | {other} | {p50:.2f} s | "
        f"{p95:.2f} s | {p99:.2f} s | {memory} MiB | {same} |"
    )


def _prompts(seed: int) -> Iterator[tuple[str, int]]:
    rng = np.random.default_rng(seed)
    while True:
        yield f"a {rng.choice(COLORS)} {rng.choice(SHAPES)}", int(rng.integers(2**53))


@contextlib.asynccontextmanager
async def _clients(server: Server, count: int) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Yields clients with addresses of their own."""
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for index in range(count):
            transport = httpx.AsyncHTTPTransport(local_address=f"127.0.0.{index + 2}")
            client = httpx.AsyncClient(transport=transport, base_url=server.url, timeout=600)
            clients.append(await stack.enter_async_context(client))
        yield clients


async def _closed(server: Server, count: int, seconds: float) -> Tally:
    """Lets clients ask for one image after the other."""
    tally, start = Tally(), time.monotonic()

    async def work(client: httpx.AsyncClient, seed: int) -> None:
        for prompt, image_seed in _prompts(seed):
            if time.monotonic() - start > seconds:
                return
            await _request(client, prompt, image_seed, tally)

    async with _clients(server, count) as clients:
        await asyncio.gather(*(work(client, index) for index, client in enumerate(clients)))
    tally.seconds = time.monotonic() - start
    return tally


async def _open(server: Server, count: int, rate: float, seconds: float) -> Tally:
    """Lets clients ask at random times, `rate` times a second in all."""
    tally, rng, start = Tally(), np.random.default_rng(0), time.monotonic()
    due, tasks = 0.0, []
    async with _clients(server, count) as clients, asyncio.TaskGroup() as group:
        watch = group.create_task(_watch_memory(server, tally))
        for prompt, seed in itertools.islice(_prompts(1), int(rate * seconds)):
            due += rng.exponential(1 / rate)
            await asyncio.sleep(max(0.0, start + due - time.monotonic()))
            tasks.append(group.create_task(_request(clients[rng.integers(count)], prompt, seed, tally)))
        await asyncio.wait(tasks)
        watch.cancel()
    tally.seconds = time.monotonic() - start
    tally.memory.append(server.memory())
    return tally


async def _watch_memory(server: Server, tally: Tally) -> None:
    while True:
        tally.memory.append(server.memory())
        await asyncio.sleep(5)


async def _request(client: httpx.AsyncClient, prompt: str, seed: int, tally: Tally) -> None:
    """Asks for an image, and follows the job to its end."""
    tally.sent += 1
    start = time.monotonic()
    try:
        response = await client.post("/v1/jobs", json={"prompts": prompt, "seeds": seed})
        if response.status_code == 429:
            tally.refused += 1
            tally.without_retry_after += "retry-after" not in response.headers
            return
        if response.status_code != 202:
            tally.other[f"status {response.status_code}"] += 1
            return
        job = response.json()["id"]
        if job in tally.accepted:
            tally.other["job id given twice"] += 1
        tally.accepted[job] = prompt, seed
        async with client.stream("GET", f"/v1/jobs/{job}/events") as events:
            async for line in events.aiter_lines():
                if line in ("event: canceled", "event: failed"):
                    tally.other[line] += 1
                if line == "event: done":
                    tally.latencies.append(time.monotonic() - start)
                    return
        tally.other["stream that ended early"] += 1
    except httpx.HTTPError as error:
        tally.other[type(error).__name__] += 1


def _check(server: Server, tally: Tally, stages: str, count: int) -> int:
    """Looks up every accepted job, and compares the images of some; returns how many were compared.

    Raises:
        AssertionError: a job is not done, has not one image, or is not in the history once; an image differs.
    """
    if tally.without_retry_after:
        raise AssertionError(f"{tally.without_retry_after} refusals have no Retry-After")
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for job in tally.accepted:
            found = client.get(f"/v1/jobs/{job}").json()
            if found["status"] != "done" or len(found["images"]) != 1 or found["images"][0]["url"] is None:
                raise AssertionError(f"job {job} is {found['status']} with {len(found['images'])} images")
        listed = _history(client)
        wrong = [job for job in tally.accepted if listed[job] != 1]
        if wrong:
            raise AssertionError(f"{len(wrong)} jobs are not in the history once, such as {wrong[0]}")
        chosen = list(tally.accepted)[:: max(1, len(tally.accepted) // count)] if count else []
        served = [client.get(client.get(f"/v1/jobs/{job}").json()["images"][0]["url"]).content for job in chosen]
    if chosen:
        from imagen_jax import ImagenPipeline

        pipeline = ImagenPipeline.from_pretrained(stages)
        pipeline.set_progress_bar_config(disable=True)
        for job, png in zip(chosen, served, strict=True):
            prompt, seed = tally.accepted[job]
            if not np.array_equal(np.asarray(Image.open(io.BytesIO(png))), pipeline(prompt, seed=seed).images[0]):
                raise AssertionError(f"the image of job {job} is not the one that the pipeline samples")
    return len(chosen)


def _history(client: httpx.Client) -> Counter[str]:
    """Returns how often each job is in the history."""
    listed: Counter[str] = Counter()
    before = None
    while True:
        page = client.get("/v1/history", params={"limit": 200} | ({"before": before} if before else {})).json()
        listed.update(job["id"] for job in page["jobs"])
        before = page["next"]
        if before is None:
            return listed


if __name__ == "__main__":
    app.main(__name__)
