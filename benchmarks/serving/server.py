"""A server in a process of its own, as `imagen serve` starts it, and what the benchmarks ask it. Linux only."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

_START_SECONDS = 300  # to load, and to compile all sizes
_URL = re.compile(r"http://[0-9.]+:[0-9]+")


class Server:
    """A running server.

    Args:
        process: that serves.
        log: file of what it prints.
        url: its address, without a slash at the end.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path, url: str) -> None:
        self.process, self.log, self.url = process, log, url

    def memory(self) -> int:
        """Returns its resident memory in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def metric(self, name: str) -> float:
        """Returns the sum of a metric over its labels."""
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        values = [float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}(\{{|\s)", line)]
        if not values:
            raise KeyError(f"/metrics has no {name}")
        return sum(values)


@contextlib.contextmanager
def running(stages: str, out: Path, *arguments: str) -> Iterator[Server]:
    """Starts a server on a free port, and yields it when it is ready; it is stopped by SIGTERM.

    Args:
        stages: as `imagen serve --stages`.
        out: its folder; what it prints goes into a file beside it.
        arguments: more of its command line.
    """
    log = out.parent / f"{out.name}.log"
    command = [
        sys.executable,
        "-m",
        "imagen_jax",
        "serve",
        f"--stages={stages}",
        f"--out={out}",
        "--port=0",
        *arguments,
    ]
    with log.open("wb") as file:
        process = subprocess.Popen([*command, *arguments], stdout=file, stderr=subprocess.STDOUT)
    try:
        yield Server(process, log, _wait(process, log))
    finally:
        process.terminate()
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def _wait(process: subprocess.Popen[bytes], log: Path) -> str:
    """Returns the address of a server when it is ready."""
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        found = _URL.search(log.read_text())
        if found is not None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{found[0]}/readyz").status_code == 200:
                    return found[0]
        time.sleep(0.5)
    raise RuntimeError(f"the server did not become ready:\n{log.read_text()}")
