"""Kills of a real server, `imagen serve`, while jobs run."""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np

from tests.faults.harness import ENVIRONMENT, TIMEOUT, Result
from tests.helpers.configs import ROOT

JOBS_PER_LIFE = 3
IMAGES = 4  # of a job, at most


class Server:
    """A server in a process of its own, killed at the end of its `with` block."""

    def __init__(self, out):
        out.parent.mkdir(parents=True, exist_ok=True)
        self._log_file = out.with_suffix(".log")
        self._file = self._log_file.open("wb")
        flags = ["--stages=shapes", f"--out={out}", "--port=0", "--batch_sizes=1,4"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "imagen_jax", "serve", *flags],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=self._file,
            stderr=subprocess.STDOUT,
        )
        self._url = ""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._file.close()

    def url(self):
        """Waits until the server answers; returns where it is."""
        url = _until(lambda: re.search(r"http://127\.0\.0\.1:\d+", self._log_file.read_text()), self.process)[0]

        def answers():
            try:
                return urllib.request.urlopen(f"{url}/healthz", timeout=TIMEOUT).read()
            except OSError:  # it says where it will be before it listens
                return None

        _until(answers, self.process)
        return url

    def ask(self, path, body=None):
        """Returns the response to a request, bytes."""
        self._url = self._url or self.url()
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self._url + path, data, {"content-type": "application/json"})
        with urllib.request.urlopen(asked, timeout=TIMEOUT) as response:
            return response.read()

    def submit(self, number):
        """Returns the id of the job with a number, which is the same however often it is sent."""
        prompts = [f"a red circle {number}", "a small blue ring above a green square"]
        body = {"prompts": prompts, "count": 1 + number % (IMAGES // 2), "seeds": number}
        return json.loads(self.ask("/v1/jobs", {**body, "idempotency_key": f"job {number}"}))["id"]

    def images(self, job_id):
        """Waits until a job has ended; returns its status and the files of its images."""

        def ended():
            job = json.loads(self.ask(f"/v1/jobs/{job_id}"))
            return job if job["status"] not in ("queued", "running") else None

        job = _until(ended, self.process, 0.1)
        return job["status"], [self.ask(image["url"]) for image in job["images"]]

    def sampled(self, job_ids):
        """Returns how many images of some jobs there are."""
        jobs = [json.loads(self.ask(f"/v1/jobs/{job_id}")) for job_id in job_ids]
        return sum(image["url"] is not None for job in jobs for image in job["images"])


def _until(condition, process, pause=0.01):
    """Waits until a condition is true; returns it."""
    ends = time.monotonic() + TIMEOUT
    while not (value := condition()):
        assert process.poll() is None and time.monotonic() < ends, "the server has ended, or hangs"
        time.sleep(pause)
    return value


def killed_server(bench, trials):
    """Kills a server repeatedly, every fourth time while it starts; then lets it finish, and compares all files."""
    rng, accepted = np.random.default_rng(0), {}
    out = bench.new_workdir("server")
    for trial in range(trials):
        with Server(out) as server:
            if trial % 4 == 3:
                time.sleep(rng.uniform(0, 5))
                continue
            for number in range(max(0, JOBS_PER_LIFE * (trial - 1)), JOBS_PER_LIFE * (trial + 1)):
                job_id = server.submit(number)
                if accepted.setdefault(number, job_id) != job_id:
                    return Result("kill -9 of a server", trials, 0, f"job {number} is there twice")
            target = min(server.sampled(accepted.values()) + int(rng.integers(1, 6)), _count(accepted))
            _until(lambda server=server, target=target: server.sampled(accepted.values()) >= target, server.process)
            time.sleep(rng.uniform(0, 0.3))
    with Server(out) as server:
        results = {number: server.images(job_id) for number, job_id in accepted.items()}
        jobs = len(json.loads(server.ask("/v1/history?limit=200"))["jobs"])
    with Server(bench.new_workdir("undisturbed_server")) as server:
        expected = {number: server.images(server.submit(number)) for number in accepted}
    different = sum(results[number] != expected[number] for number in accepted)
    is_right = not different and jobs == len(accepted) and all(status == "done" for status, _ in results.values())
    images = sum(len(files) for _, files in results.values())
    return Result(
        "kill -9 of a server while jobs run",
        trials,
        trials if is_right else 0,
        f"{len(accepted)} jobs accepted, {jobs} there; {images} images, files of {different} jobs differ",
    )


def _count(numbers):
    return sum(2 * (1 + number % (IMAGES // 2)) for number in numbers)
