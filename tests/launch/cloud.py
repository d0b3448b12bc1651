"""A mock cloud with one TPU of two workers, which are local folders: the `gcloud` of the tests of tpu.sh.

It records every call, keeps the state of the TPU in a file, and really runs the commands for the workers.
As a program it is gcloud: `python -I cloud.py WORLD ARGUMENT…`.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORKERS = 2
# The states of a queued resource, in order.
QUEUE_STATES = ["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]


def make_project(folder, *parts):
    """Creates a git repository with parts of this one."""
    for part in parts:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    (folder / ".gitignore").write_text("/.cache/\n")
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.com"]
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)
    return folder


class Cloud:
    """A mock cloud in a folder; `bin` has to be first in the PATH."""

    def __init__(self, world):
        self.world = Path(world)
        self.bin, self.bin_of_workers = self.world / "bin", self.world / "bin_of_workers"
        self._calls, self._state = self.world / "calls.jsonl", self.world / "state.json"

    def build(self):
        self.bin.mkdir(parents=True)
        self.bin_of_workers.mkdir()
        self.command(self.bin, "gcloud", f'exec {sys.executable} -I {__file__} {self.world} "$@"')
        # the result of `make setup` in no time: python is a script, which each test writes
        self.command(
            self.bin_of_workers,
            "make",
            f'echo "make $*" >>{self.world}/made && mkdir -p .venv/bin && ln -sf {self.world}/python .venv/bin/python',
        )
        self.python("exit 0")
        self.set_state(queued=None, node=None)
        return self

    def command(self, folder, name, text):
        """Writes a program as a shell script."""
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)

    def python(self, text):
        """Sets what the workers' .venv/bin/python does with `-m imagen_jax …`; `-m pip` is only recorded."""
        record = 'printf "%s\\0" "$@" >>"$HOME/python_calls" && printf "\\n" >>"$HOME/python_calls"'
        self.command(self.world, "python", f"{record}\n[[ $2 != pip ]] || exit 0\n{text}")

    def environment(self):
        """Returns an environment in which `gcloud` is this one."""
        return os.environ | {"PATH": f"{self.bin}:{os.environ['PATH']}"}

    @property
    def calls(self):
        """Returns the arguments of all calls so far."""
        return [json.loads(line) for line in self._calls.read_text().splitlines()] if self._calls.exists() else []

    @property
    def verbs(self):
        """Returns "KIND VERB" of each call that does not read a state."""
        return [" ".join(call[2:4]) for call in self.calls if "describe" not in call and " state;" not in call[-1]]

    def home(self, worker):
        return self.world / f"worker{worker}"

    def python_calls(self, worker):
        """Returns the arguments of each call of a worker's python; one that is still being recorded is left out."""
        file = self.home(worker) / "python_calls"
        *lines, _ = file.read_bytes().split(b"\0\n") if file.exists() else [b""]
        return [line.decode().split("\0") for line in lines]

    @property
    def state(self):
        return json.loads(self._state.read_text())

    def set_state(self, **state):
        temporary = self.world / "state.tmp"
        temporary.write_text(json.dumps(state))
        temporary.replace(self._state)

    def preempt(self):
        """Preempts the TPU, as the cloud does with spot VMs: its disks are lost."""
        queued = self.state["queued"] and "SUSPENDED"
        self.end_workers()
        self.set_state(queued=queued, node=None if queued else "PREEMPTED")

    def end_workers(self):
        for worker in range(WORKERS):
            pid = self.home(worker) / "imagen_jax" / "run" / "pid"
            if pid.exists():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(int(pid.read_text()), signal.SIGKILL)
            shutil.rmtree(self.home(worker), ignore_errors=True)

    def answer(self, arguments):
        """Runs a call of gcloud; returns its exit code."""
        with self._calls.open("a") as file:
            file.write(json.dumps(arguments) + "\n")
        if (self.world / "broken").exists():
            return fail("UNAVAILABLE: the service is unavailable")
        flags = dict(
            flag[2:].split("=", 1) if "=" in flag else (flag[2:], "") for flag in arguments if flag[:2] == "--"
        )
        kind, verb, *rest = [argument for argument in arguments if argument[:2] != "--"][2:]
        if (self.world / "only_records").exists() and verb != "describe":
            return 0
        return getattr(self, f"_{verb}")(kind, rest, flags)

    def _create(self, kind, rest, flags):
        state = self.state
        if state["queued"] or state["node"]:
            return fail("ALREADY_EXISTS: the resource exists")
        if kind == "queued-resources":
            self.set_state(queued=QUEUE_STATES[0], node=None)
        else:
            self.start_workers(queued=None)
        return 0

    def start_workers(self, queued):
        """Makes the TPU READY, with empty workers."""
        for worker in range(WORKERS):
            # a killed process may have written a file after its folder was deleted
            shutil.rmtree(self.home(worker), ignore_errors=True)
            self.home(worker).mkdir(exist_ok=True)
        self.set_state(queued=queued, node="READY")

    def _delete(self, kind, rest, flags):
        self.end_workers()
        self.set_state(queued=None, node=None)
        return 0

    def _describe(self, kind, rest, flags):
        state = self.state
        current = state["queued" if kind == "queued-resources" else "node"]
        if current is None:
            return fail("NOT_FOUND: Resource was not found")
        print(current)
        if kind == "queued-resources" and current in QUEUE_STATES[:-1]:
            following = QUEUE_STATES[QUEUE_STATES.index(current) + 1]
            if following == "ACTIVE":
                self.start_workers(following)
            else:
                self.set_state(**{**state, "queued": following})
        return 0

    def _ssh(self, kind, rest, flags):
        if self.state["node"] != "READY":
            return fail("the TPU is not READY")
        workers = range(WORKERS) if flags["worker"] == "all" else [int(flags["worker"])]
        # gcloud prints messages before and after the command's output
        print("Using ssh batch size of 1. Attempting to SSH into nodes ...", file=sys.stderr, flush=True)
        running = [
            subprocess.Popen(["bash", "-c", flags["command"]], **self._worker_environment(worker)) for worker in workers
        ]
        code = max(process.wait() for process in running)
        print("Connection to 10.0.0.3 closed.", file=sys.stderr)
        return code

    def _worker_environment(self, worker):
        home = self.home(worker)
        path = f"{self.bin_of_workers}:{os.environ['PATH']}"
        # on a real TPU, jax finds these values itself
        process = {"JAX_NUM_PROCESSES": str(WORKERS), "JAX_PROCESS_ID": str(worker)}
        return {"cwd": home, "env": os.environ | process | {"HOME": str(home), "PATH": path}}

    def _scp(self, kind, rest, flags):
        source, target = rest
        if source.startswith("/"):
            for worker in range(WORKERS):
                shutil.copy(source, self.home(worker) / target.partition(":")[2])
        else:
            folder = self.home(int(flags["worker"])) / source.partition(":")[2]
            shutil.copytree(folder, Path(target) / folder.name)
        return 0


def fail(message):
    print(f"ERROR: (gcloud) {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(Cloud(sys.argv[1]).answer(sys.argv[2:]))
