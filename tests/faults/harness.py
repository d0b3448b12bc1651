"""Starts real training commands, breaks them, and compares their results with an undisturbed run."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from imagen_jax.training.goodput import PHASES
from imagen_jax.training.metric_writer import read_metrics
from tests.conftest import CACHE, xla_flags
from tests.faults.tiny import get_config
from tests.helpers.configs import ROOT, free_port, one_device, restored

ENVIRONMENT = os.environ | {
    "XLA_FLAGS": xla_flags(devices=1),  # `devices` sets more
    # from the second start on, programs are read from the cache
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    "PYTHONUNBUFFERED": "1",
}
TINY = "tests/faults/tiny.py"
# Sets resource limits and executes a command. In a fork of this process, which has threads, it could hang.
LIMITED = """
import json, os, resource, sys
for number, most in json.loads(sys.argv[1]).items():
    resource.setrlimit(int(number), (most, most))
os.execv(sys.argv[2], sys.argv[2:])
"""
TIMEOUT = 600  # seconds after which a process counts as hanging


class Training:
    """A train command in a separate process, killed at the end of its `with` block."""

    def __init__(self, workdir, fault=None, limits=None, log_file=None, variables=None, config=TINY, **changes):
        self.workdir = workdir
        self.log_file = log_file or workdir.with_suffix(".out")
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        command = ["tests.faults.broken_train"] if fault else ["imagen_jax", "train"]
        flags = [f"--config.training.{name}={value}" for name, value in changes.items()]
        self._file = self.log_file.open("wb")

        command = [sys.executable, "-m", *command, f"--config={ROOT}/{config}", f"--workdir={workdir}", *flags]
        self.process = subprocess.Popen(
            [sys.executable, "-c", LIMITED, json.dumps(limits), *command] if limits else command,
            cwd=ROOT,
            env=ENVIRONMENT | (variables or {}) | ({"TRAIN_FAULT": fault} if fault else {}),
            stdout=self._file,
            stderr=subprocess.STDOUT,
        )
        self.start_time = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.send(signal.SIGKILL)
        self.process.wait()
        self._file.close()

    def send(self, number):
        """Sends a signal to the process, which may have ended."""
        self.process.send_signal(number)

    def until(self, condition):
        """Waits until a condition is true or the process has ended; returns the condition. Polls fast."""
        while self.process.poll() is None:
            if condition():
                return True
            if time.monotonic() - self.start_time > TIMEOUT:
                raise AssertionError(f"the condition was not true within {TIMEOUT} s; output: {self.text()}")
            time.sleep(0.0005)
        return condition()

    def wait_for_end(self):
        """Waits for the process to end; returns (exit code, output)."""
        return self.process.wait(TIMEOUT), self.text()

    def text(self):
        """Returns the output so far."""
        return self.log_file.read_text(errors="replace")

    def reach(self, step):
        """Waits until a step is in its metrics."""
        assert self.until(lambda: max(losses(self.workdir), default=0) >= step), self.text()


def trained(workdir, **options):
    """Runs a training command that must succeed; returns its output."""
    with Training(workdir, **options) as training:
        code, output = training.wait_for_end()
    assert code == 0, output
    return output


@contextlib.contextmanager
def together(workdir, count, faults=None, **options):
    """Starts the processes of one run, with a device each; `faults` are by process index."""
    with contextlib.ExitStack() as stack:
        port = free_port()
        yield [
            stack.enter_context(
                Training(
                    workdir,
                    fault=(faults or {}).get(index),
                    log_file=workdir.with_suffix(f".out.{index}"),
                    variables={
                        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                        "JAX_NUM_PROCESSES": str(count),
                        "JAX_PROCESS_ID": str(index),
                        # as in launch/local.sh
                        "JAX_ENABLE_COMPILATION_CACHE": "false",
                    },
                    **options,
                )
            )
            for index in range(count)
        ]


def trained_together(workdir, count, **options):
    """Runs the processes of one run, which must succeed."""
    with together(workdir, count, **options) as members:
        for member in members:
            code, output = member.wait_for_end()
            assert code == 0, output


@contextlib.contextmanager
def small_disk(folder, size):
    """Mounts a disk of a size in MiB; yields whether that is possible, as it is for root."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}m", "none", folder]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder], check=True)


def devices(count):
    """Returns the environment of a command with a number of simulated devices."""
    return {"XLA_FLAGS": xla_flags(count)}


def losses(workdir):
    """Returns the recorded losses by step."""
    return {line["step"]: line["loss"] for line in read_metrics(workdir) if "loss" in line}


def difference(workdir, undisturbed):
    """Returns the largest difference of two runs' losses and last states; inf if their steps differ."""
    mine, theirs = losses(workdir), losses(undisturbed)
    (state, position), (other, other_position) = (
        restored(folder, get_config(), one_device()) for folder in (workdir, undisturbed)
    )
    if mine.keys() != theirs.keys() or position != other_position or int(state.step) != int(other.step):
        return float("inf")
    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True)
    state_difference = max(float(np.max(np.abs(np.float64(a) - np.float64(b)), initial=0.0)) for a, b in leaves)
    return max(state_difference, *(abs(mine[step] - theirs[step]) for step in mine))


def steps_in(workdir):
    """Returns the steps of the complete checkpoints of a folder."""
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.exists() else []


def leftovers(workdir):
    """Returns the names of files and folders beside the complete checkpoints."""
    return [path.name for path in (workdir / "checkpoints").iterdir() if not path.name.isdecimal()]


@dataclasses.dataclass
class Result:
    """The result of the trials of a fault."""

    fault: str
    trials: int
    passed: int
    worst: str


class Bench:
    """The folder of all trials, with an undisturbed run."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.undisturbed = self.folder / "undisturbed" / "stage"
        trained(self.undisturbed)
        lines = (self.undisturbed / "goodput.jsonl").read_text().splitlines()
        self.seconds = sum(json.loads(lines[-1])[phase] for phase in PHASES)

    def new_workdir(self, name):
        """Returns the path of a stage folder that does not exist."""
        workdir = self.folder / name / "stage"
        shutil.rmtree(workdir.parent, ignore_errors=True)
        return workdir

    def killed_after_save(self, name):
        """Returns the folder of a run that was killed after a save."""
        workdir = self.new_workdir(name)
        with Training(workdir) as training:
            assert training.until(lambda: steps_in(workdir)), training.text()
        return workdir

    def difference(self, workdir):
        """Returns the `difference` to the undisturbed run."""
        return difference(workdir, self.undisturbed)


def resumed_step(workdir):
    """Returns the step from which the last start has resumed."""
    lines = (workdir / "goodput.jsonl").read_text().splitlines()
    starts = [json.loads(line) for line in lines]
    return next(line["at_step"] for line in starts if line["start_number"] == starts[-1]["start_number"])
