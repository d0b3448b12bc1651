"""A server of `imagen serve` in a process of its own, on a port of its own."""

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import httpx

from tests.helpers.configs import ROOT

START_SECONDS = 300  # to compile on a busy machine


class ServerProcess:
    """A server.

    Args:
        folder: of the queue, the images and the log.
        flags: of `imagen serve`, besides where it listens and what it writes to.
        xla_flags: $XLA_FLAGS; none by default.
    """

    def __init__(self, folder, *flags, xla_flags=""):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._log = folder, folder / "server.log"
        self._log.touch()
        command = [sys.executable, "-m", "imagen_jax", "serve", "--port=0", f"--out={folder / 'out'}", *flags]
        # optimized, as a user has it: sampling is most of what it does
        environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": xla_flags}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment)
        try:
            self.url = self._wait_for(lambda: re.search(r"serving \S+ at (http://\S+)/", self.log()))[1]
            self._wait_for(lambda: httpx.get(f"{self.url}/readyz").status_code == 200)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _wait_for(self, condition):
        deadline = time.monotonic() + START_SECONDS
        while True:
            value = condition()
            if value:
                return value
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.2)

    def log(self):
        """Returns what the server has printed."""
        return self._log.read_text()

    def stop(self):
        """Stops it by SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120)


@contextlib.contextmanager
def serve(folder, *flags, xla_flags=""):
    """Yields a `ServerProcess`, which is ready; it is killed at the end."""
    server = ServerProcess(folder, *flags, xla_flags=xla_flags)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def read_events(response):
    """Yields (name, data) of the server-sent events of a streamed response; comments are left out."""
    name = ""
    for line in response.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, value


def finish(client, body):
    """Adds a job and returns it when it is done."""
    job = client.post("/v1/jobs", json=body)
    assert job.status_code == 202, job.text
    with client.stream("GET", job.json()["events"]) as stream:
        name, data = list(read_events(stream))[-1]
    assert name == "done"
    return json.loads(data)


def base64_of(data):
    return base64.b64encode(data).decode()
