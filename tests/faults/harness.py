"""Starts real training commands, breaks them, and compares what they leave with a run that nothing broke."""

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
    "XLA_FLAGS": xla_flags(devices=1),  # `devices` has more
    # programs are read from the cache from the second start on
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    "PYTHONUNBUFFERED": "1",
}
TINY = "tests/faults/tiny.py"
# Sets limits of resources, by their numbers, and becomes a command. Done in the fork of a process with threads, such as
# this one, it could hang.
LIMITED = """
import json, os, resource, sys
for number, most in json.loads(sys.argv[1]).items():
    resource.setrlimit(int(number), (most, most))
os.execv(sys.argv[2], sys.argv[2:])
"""
PATIENCE = 600  # seconds, after which a process is taken to hang


class Training:
    """A train command in a process of its own, killed at the end of its ``with`` block."""

    def __init__(self, workdir, fault=None, limits=None, said=None, variables=None, config=TINY, **changes):
        self.workdir = workdir
        self.said = said or workdir.with_suffix(".said")
        self.said.parent.mkdir(parents=True, exist_ok=True)
        command = ["tests.faults.broken_train"] if fault else ["imagen_jax", "train"]
        flags = [f"--config.training.{name}={value}" for name, value in changes.items()]
        self._file = self.said.open("wb")

        command = [sys.executable, "-m", *command, f"--config={ROOT}/{config}", f"--workdir={workdir}", *flags]
        self.process = subprocess.Popen(
            [sys.executable, "-c", LIMITED, json.dumps(limits), *command] if limits else command,
            cwd=ROOT,
            env=ENVIRONMENT | (variables or {}) | ({"TRAIN_FAULT": fault} if fault else {}),
            stdout=self._file,
            stderr=subprocess.STDOUT,
        )
        self.began = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.send(signal.SIGKILL)
        self.process.wait()
        self._file.close()

    def send(self, number):
        """Sends a signal to the process; it may have ended."""
        self.process.send_signal(number)

    def until(self, condition):
        """Waits until a condition holds, or the process has ended; whether it held. It is asked as fast as can be."""
        while self.process.poll() is None:
            if condition():
                return True
            if time.monotonic() - self.began > PATIENCE:
                raise AssertionError(f"nothing happened for {PATIENCE} s; it said: {self.text()}")
            time.sleep(0.0005)
        return condition()

    def ended(self):
        """(exit code, what it said) at its end."""
        return self.process.wait(PATIENCE), self.text()

    def text(self):
        """What it said so far."""
        return self.said.read_text(errors="replace")

    def reach(self, step):
        """Waits until a step is in its records."""
        assert self.until(lambda: max(losses(self.workdir), default=0) >= step), self.text()


def trained(workdir, **options):
    """A training command that must succeed: what it said."""
    with Training(workdir, **options) as training:
        code, said = training.ended()
    assert code == 0, said
    return said


@contextlib.contextmanager
def together(workdir, count, faults=None, **options):
    """Training commands that are one run, of a device each; ``faults`` are by the number of the process."""
    with contextlib.ExitStack() as held:
        port = free_port()
        yield [
            held.enter_context(
                Training(
                    workdir,
                    fault=(faults or {}).get(index),
                    said=workdir.with_suffix(f".said.{index}"),
                    variables={
                        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                        "JAX_NUM_PROCESSES": str(count),
                        "JAX_PROCESS_ID": str(index),
                        # as launch/local.sh has it
                        "JAX_ENABLE_COMPILATION_CACHE": "false",
                    },
                    **options,
                )
            )
            for index in range(count)
        ]


def trained_together(workdir, count, **options):
    """Training commands that are one run and must succeed."""
    with together(workdir, count, **options) as members:
        for member in members:
            code, said = member.ended()
            assert code == 0, said


def devices(count):
    """The environment of a command that has so many simulated devices."""
    return {"XLA_FLAGS": xla_flags(count)}


def losses(workdir):
    """Step → loss, as recorded: to the bit."""
    return {line["step"]: line["loss"] for line in read_metrics(workdir) if "loss" in line}


def difference(workdir, unbroken):
    """The largest difference of two runs' losses, and of all the numbers in their last states; inf for other steps."""
    mine, theirs = losses(workdir), losses(unbroken)
    (state, position), (other, other_position) = (
        restored(folder, get_config(), one_device()) for folder in (workdir, unbroken)
    )
    if mine.keys() != theirs.keys() or position != other_position or int(state.step) != int(other.step):
        return float("inf")
    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True)
    of_state = max(float(np.max(np.abs(np.float64(a) - np.float64(b)), initial=0.0)) for a, b in leaves)
    return max(of_state, *(abs(mine[step] - theirs[step]) for step in mine))


def steps_in(workdir):
    """The complete checkpoints of a folder."""
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.exists() else []


def leftovers(workdir):
    """What a kill left beside the complete checkpoints."""
    return [path.name for path in (workdir / "checkpoints").iterdir() if not path.name.isdecimal()]


@dataclasses.dataclass
class Result:
    """What came of the trials of a fault."""

    fault: str
    trials: int
    held: int
    worst: str


class Bench:
    """The folder of all trials, with the run that nothing broke."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.unbroken = self.folder / "unbroken" / "stage"
        trained(self.unbroken)
        lines = (self.unbroken / "goodput.jsonl").read_text().splitlines()
        self.seconds = sum(json.loads(lines[-1])[phase] for phase in PHASES)

    def new(self, name):
        """A place for a stage's folder that is not there."""
        place = self.folder / name / "stage"
        shutil.rmtree(place.parent, ignore_errors=True)
        return place

    def halted(self, name):
        """The folder of a stage that was killed after it had saved."""
        place = self.new(name)
        with Training(place) as training:
            assert training.until(lambda: steps_in(place)), training.text()
        return place

    def difference(self, workdir):
        """As ``difference``, to the run that nothing broke."""
        return difference(workdir, self.unbroken)


def resumed_step(workdir):
    """The step that the last start went on from."""
    lines = (workdir / "goodput.jsonl").read_text().splitlines()
    starts = [json.loads(line) for line in lines]
    return next(line["at_step"] for line in starts if line["start_number"] == starts[-1]["start_number"])
