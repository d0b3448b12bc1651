"""Attack the server, as in docs/serving.md: `python -m benchmarks.serving.attacks --stages=shapes`. Linux only.

Each attack goes on against a server that also serves an honest client, which asks for one image after the other. What
counts: how the attack is answered, that no answer is an error of the server (5xx), how its memory grows, and how long
the honest client waits, beside how long it waits without an attack. Attackers have addresses
of their own in 127.0.0.0/8.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import statistics
import tempfile
import time
import urllib.parse
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from absl import flags

from benchmarks import app
from benchmarks.serving import upload_attacks
from benchmarks.serving.raw_http import format_statuses, make_head, make_png, send_raw
from benchmarks.serving.server import Server, running
from imagen_jax.cli.flags import CommandFlags

TOKEN = "correct-" + "horse" * 6
HOSTILE = (
    "../../../etc/passwd",
    "..\\..\\windows\\system32",
    "/etc/passwd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "a\x00b",
    "a\x1b[2J\x07b",
    "line\r\nSet-Cookie: stolen=1",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; DROP TABLE jobs; --",
    "{{7*7}} ${7*7} %s%s%n",
    "\u202egnp.egami",
    "\ud800",
    "\uffff\U0010ffff",
    "é" * 3000,
    "x" * 100_000,
    "",
    " ",
)
OTHER_VALUES: tuple[Any, ...] = (None, True, -1, 0, 10**30, 1e308, 2**64, [], [[]], {}, {"a": {}}, [None], "7", 0.5)
JOB_FIELDS = (
    *("prompts", "negative_prompt", "count", "seeds", "settings", "height", "width", "priority", "idempotency_key"),
    "unknown",
)
IMAGE_FIELDS = ("prompt", "model", "n", "size", "response_format", "user", "seed", "quality", "settings", "unknown")

Attack = Callable[[Server], Coroutine[Any, Any, str]]


@dataclasses.dataclass(frozen=True)
class Measured:
    """One attack: what was answered, memory before and at most in bytes, latencies of the honest client in seconds."""

    answer: str
    before: int
    peak: int
    latencies: list[float]


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    flags.DEFINE_string("stages", "shapes", "The cascade, as for imagen serve.", flag_values=values)
    flags.DEFINE_string("only", "", "Attacks whose name has this text alone.", flag_values=values)


def run(args: CommandFlags) -> None:
    """Runs all attacks, and prints a table."""
    attacks: dict[str, Attack] = {
        "none": _nothing,
        "bodies of 4 GB, announced": _announced_bodies,
        "bodies without end, in chunks": _endless_bodies,
        "PNG bombs": _bombs,
        "hostile values in every field": _fields,
        "hostile names of images and jobs": _paths,
        "random bytes in place of HTTP": _garbage,
        "event streams of one client": _streams_of_one,
        "1,000 event streams of 50 clients": _many_streams,
        "400 clients that send a byte a second": _slow_senders,
        "200 clients that read nothing": _slow_readers,
        **upload_attacks.ATTACKS,
    }
    for make_files in (_bomb_files, upload_attacks.bomb_files):
        make_files()  # that takes longer than sending them
    print("| attack | answer | memory, MiB | honest client, median and slowest |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out"
        with running(args.stages, out) as server:
            for text, attack in attacks.items():
                if args.only not in text:
                    continue
                measured = asyncio.run(_measure(server, attack))
                waits = f"{statistics.median(measured.latencies):.2f} s, {max(measured.latencies):.2f} s"
                memory = f"{measured.before / 2**20:.0f} → {measured.peak / 2**20:.0f}"
                print(f"| {text} | {measured.answer} | {memory} | {waits} |", flush=True)
            if server.process.poll() is not None:
                raise AssertionError("the server has ended")
        strangers = [path.name for path in Path(name).iterdir() if path.name not in ("out", "out.log")]
        if strangers or b"Traceback" in (Path(name) / "out.log").read_bytes():
            raise AssertionError(f"files outside of its folder ({strangers}), or a traceback in the log")
        with running(args.stages, Path(name) / "out2", f"--token={TOKEN}") as server:
            print(f"\nwrong tokens: {_tokens(server)}")


async def _measure(server: Server, attack: Attack) -> Measured:
    """Runs an attack beside an honest client."""
    latencies: list[float] = []
    memory = [server.memory()]

    async def honest() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
            for seed in range(10**9):
                start = time.monotonic()
                body = {"prompt": "a red circle", "seed": seed, "response_format": "b64_json"}
                response = await client.post("/v1/images/generations", json=body)
                if response.status_code != 200:
                    raise AssertionError(f"the honest client got {response.status_code}: {response.text}")
                latencies.append(time.monotonic() - start)
                memory.append(server.memory())

    task = asyncio.create_task(honest())
    while not latencies:
        await asyncio.sleep(0.05)
        if task.done():
            break
    latencies.clear()
    answer = await attack(server)
    while len(latencies) < 5 and not task.done():
        await asyncio.sleep(0.05)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return Measured(answer, memory[0], max(memory), latencies)


async def _nothing(server: Server) -> str:
    await asyncio.sleep(15)
    return "–"


async def _announced_bodies(server: Server) -> str:
    counts: Counter[Any] = Counter()
    for path in ("/v1/jobs", "/v1/images/generations", "/v1/settings") * 20:
        kind = "image/png" if path == "/v1/settings" else "application/json"
        head = make_head(server, path, f"Content-Type: {kind}", f"Content-Length: {4 * 2**30}")
        counts[(await send_raw(server, head + b"x" * 1000))[0]] += 1
    return format_statuses(counts)


async def _endless_bodies(server: Server) -> str:
    counts: Counter[Any] = Counter()
    most = 0
    chunk = b"10000\r\n" + b" " * 2**16 + b"\r\n"
    for path, kind in (("/v1/jobs", "application/json"), ("/v1/settings", "image/png")) * 10:
        head = make_head(server, path, f"Content-Type: {kind}", "Transfer-Encoding: chunked")
        status, sent = await send_raw(server, head, chunks=[chunk] * 16_000)
        counts[status] += 1
        most = max(most, sent)
    return f"{format_statuses(counts)}, after at most {most / 2**20:.0f} MiB"


@functools.cache
def _bomb_files() -> dict[str, bytes]:
    """Returns files that are small and pretend to be large, or are broken."""
    text = b"imagen_jax\0\0" + zlib.compress(b" " * 2**30, 9)
    return {
        "1 GB of text in a chunk of 1 MB": make_png((b"zTXt", text)),
        "8 such chunks": make_png(*[(b"zTXt", text)] * 8),
        "65,000 × 65,000 pixels": make_png((b"IDAT", zlib.compress(bytes(2**20))), size=(65_000, 65_000)),
        "10,000 chunks": make_png(*[(b"tEXt", b"imagen_jax\0{}")] * 10_000),
        "nested JSON": make_png((b"tEXt", b"imagen_jax\0" + b"[" * 1_000_000)),
        "a length beyond the file": make_png()[:33] + b"\x7f\xff\xff\xfftEXt",
        "no PNG": np.random.default_rng(0).bytes(2**20),
    }


async def _bombs(server: Server) -> str:
    counts: Counter[Any] = Counter()
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        for data in [*_bomb_files().values()] * 3:
            response = await client.post("/v1/settings", content=data, headers={"content-type": "image/png"})
            counts[response.status_code] += 1
    return format_statuses(counts)


async def _fields(server: Server) -> str:
    counts: Counter[Any] = Counter()
    jobs = []
    bodies = [("/v1/jobs", {"prompts": "a red circle"} | {field: value}) for field in JOB_FIELDS for value in _values()]
    bodies += [
        ("/v1/images/generations", {"prompt": "a red circle"} | {field: value})
        for field in IMAGE_FIELDS
        for value in _values()
    ]
    async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
        for path, body in bodies:
            data = json.dumps(body).encode()
            response = await client.post(path, content=data, headers={"content-type": "application/json"})
            counts[response.status_code] += 1
            if response.status_code == 202:
                jobs.append(response.json()["id"])
        for job in jobs:
            while (await client.get(f"/v1/jobs/{job}")).json()["status"] in ("queued", "running"):
                await asyncio.sleep(0.05)
    return format_statuses(counts)


def _values() -> Iterator[Any]:
    for text in HOSTILE:
        yield text
        yield [text]
        yield {text: text}
    yield from OTHER_VALUES


async def _paths(server: Server) -> str:
    counts: Counter[Any] = Counter()
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        for text in HOSTILE[:-2]:
            name = urllib.parse.quote(text.encode("utf-8", "surrogatepass")[:4000], safe="")
            for path in (f"/v1/images/{name}", f"/v1/jobs/{name}", f"/v1/jobs/{name}/events", f"/{name}"):
                counts[(await client.get(path)).status_code] += 1
        for raw in ("/v1/images/../../../etc/passwd", "/../../etc/passwd", "//etc/passwd", "/page/..%2f..%2fsetup.py"):
            counts[(await send_raw(server, make_head(server, raw, method="GET")))[0]] += 1
        queries = [text for text in HOSTILE if text.isprintable() and len(text) < 50_000]
        for text in queries:
            counts[(await client.get("/v1/history", params={"query": text})).status_code] += 1
    if counts[200] > len(queries):
        raise AssertionError(f"a hostile name was found: {counts}")
    return format_statuses(counts)


async def _garbage(server: Server) -> str:
    rng, counts = np.random.default_rng(0), Counter[Any]()
    for _ in range(500):
        data = rng.bytes(int(rng.integers(1, 2000))) + b"\r\n\r\n"
        counts[(await send_raw(server, data))[0]] += 1
    return format_statuses(counts)


@contextlib.asynccontextmanager
async def _waiting_job(server: Server) -> AsyncIterator[str]:
    """Yields the id of a job of an attacker that takes as long as the context lasts, and cancels it."""
    transport = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
    async with httpx.AsyncClient(base_url=server.url, timeout=60, transport=transport) as client:
        body = {"prompts": ["a blue ring"] * 32, "settings": {"num_inference_steps": 1000}}
        job = (await client.post("/v1/jobs", json=body)).json()["id"]
        try:
            yield job
        finally:
            await client.delete(f"/v1/jobs/{job}")


async def _open_streams(server: Server, job: str, sources: list[int], seconds: float, reads: bool = True) -> str:
    """Opens event streams of a job and holds them; returns how they were answered."""
    counts: Counter[Any] = Counter()
    ends: Counter[str] = Counter()
    host, _, port = server.url.removeprefix("http://").partition(":")

    async def hold(source: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port), local_addr=(f"127.0.0.{source}", 0))
        writer.write(make_head(server, f"/v1/jobs/{job}/events", method="GET"))
        counts[int((await reader.readline()).split()[1])] += 1
        try:
            if reads:
                async with asyncio.timeout(seconds):
                    while await reader.read(2**16):
                        pass
                ends["closed"] += 1
            else:
                await asyncio.sleep(seconds)
        except TimeoutError:
            ends["open"] += 1
        finally:
            writer.close()

    await asyncio.gather(*map(hold, sources))
    return format_statuses(counts)


async def _streams_of_one(server: Server) -> str:
    async with _waiting_job(server) as job:
        return await _open_streams(server, job, [2] * 200, 10)


async def _many_streams(server: Server) -> str:
    async with _waiting_job(server) as job:
        return await _open_streams(server, job, [2 + index % 50 for index in range(1000)], 20)


async def _slow_readers(server: Server) -> str:
    async with _waiting_job(server) as job:
        return await _open_streams(server, job, [2 + index % 50 for index in range(200)], 40, reads=False)


async def _slow_senders(server: Server) -> str:
    host, _, port = server.url.removeprefix("http://").partition(":")
    lasted: list[float] = []

    async def send(index: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port), local_addr=(f"127.0.0.{2 + index % 50}", 0))
        start = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in make_head(server, "/v1/jobs", "X: " + "x" * 200):
                writer.write(bytes([byte]))
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    if not await asyncio.wait_for(reader.read(1), 1):
                        break
        lasted.append(time.monotonic() - start)
        writer.close()

    await asyncio.gather(*(send(index) for index in range(400)))
    return f"closed after {min(lasted):.0f} to {max(lasted):.0f} s"


def _tokens(server: Server) -> str:
    """Returns how wrong tokens are answered, and whether the time tells how much of one is right."""
    kinds = {
        "nothing right": "x" * len(TOKEN),
        "half right": TOKEN[: len(TOKEN) // 2] + "x" * (len(TOKEN) - len(TOKEN) // 2),
        "all but one right": TOKEN[:-1] + "x",
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    counts: Counter[Any] = Counter()
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for _ in range(2000):  # taking turns: the load of the machine is the same for all
            for kind, token in kinds.items():
                start = time.perf_counter()
                counts[client.get("/v1/history", headers={"authorization": f"Bearer {token}"}).status_code] += 1
                times[kind].append(time.perf_counter() - start)
        odd = ("Basic eDp4", "Bearer", f"Bearer {TOKEN} x", f"bearer{TOKEN}", f"Token {TOKEN}")
        for value in odd:
            counts[client.get("/v1/history", headers={"authorization": value}).status_code] += 1
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    base = medians["nothing right"]
    ratios = ", ".join(f"{kind} {median / base:.3f}" for kind, median in medians.items())
    return f"{format_statuses(counts)}; median time of an answer as a ratio: {ratios}"


if __name__ == "__main__":
    app.main(__name__)
