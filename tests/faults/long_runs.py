"""Measurements of long runs and of the cost of kills. Each is a function `(bench, trials) -> Result`."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np

from configs.shapes_base import get_config
from imagen_jax.io.json_lines import read_json_lines
from imagen_jax.training.goodput import time_by_phase
from tests.faults.harness import Result, Training, losses, steps_in, trained

SAVE_EVERY = 400  # steps
KILL_EVERY = 300  # seconds, for the estimate of goodput
MIN_GOODPUT = 0.95


def flat_memory(bench, trials):
    """Measures the growth of resident memory and open files over `trials` steps, after the first fifth."""
    workdir, samples = bench.new_workdir("long"), []
    changes = {"steps": trials, "save_every": SAVE_EVERY, "preview_every": trials, "log_every": 10}
    with Training(workdir, **changes) as training:
        proc = Path(f"/proc/{training.process.pid}")
        while training.process.poll() is None:
            step = max(losses(workdir), default=0)
            with contextlib.suppress(OSError, IndexError):
                pages = int((proc / "statm").read_text().split()[1])
                samples.append((step, pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir(proc / "fd"))))
            with contextlib.suppress(subprocess.TimeoutExpired):
                training.process.wait(0.5)
        code, output = training.wait_for_end()
    assert code == 0, output
    # without the beginning, when buffers fill, and the end, with previews and plots
    steps, memory, files = np.array([line for line in samples if trials / 5 <= line[0] < trials - 10]).T
    slope = 1000 * np.polyfit(steps, memory, 1)[0]
    half = len(files) // 2
    more_files = np.median(files[half:]) - np.median(files[:half])
    output = f"{slope:+.2f} MB per 1,000 steps, at {np.median(memory):.0f} MB"
    output += f"; {more_files:+.0f} open files, at {np.median(files):.0f}"
    return Result(f"memory of {trials:,} steps", 1, int(slope < 1 and more_files <= 0), output)


def blocking_saves(bench, trials):
    """Measures how long saves block the steps of the demo's base, with twice as many saves as in the demo.

    The last save, which is waited for, is left out. Steps are compiled with full optimization, unlike in other tests.
    """
    workdir, every = bench.new_workdir("shapes"), get_config().training.save_every // 2
    steps = (trials + 1) * every
    changes = {"steps": steps, "save_every": every, "preview_every": steps}
    trained(workdir, config="configs/shapes_base.py", variables={"XLA_FLAGS": ""}, **changes)
    lines = [line for line in read_json_lines(workdir / "goodput.jsonl") if 0 < line["at_step"] < steps]
    spent = lines[-1]
    share = spent["checkpoint"] / spent["step"]
    each = spent["checkpoint"] / (spent["at_step"] // every)
    milliseconds = 1000 * spent["step"] / spent["at_step"]
    output = f"{share:.2%} of step time: {1000 * each:.0f} ms a save, {milliseconds:.0f} ms a step"
    return Result(f"saving every {every} steps", trials, trials * int(share < 0.01), output)


def goodput_under_kills(bench, trials):
    """Kills 50 steps after each save; measures the time that each kill costs, and the goodput with one in 5 minutes."""
    workdir, changes = bench.new_workdir("goodput"), {"save_every": 100, "preview_every": 10_000, "log_every": 10}
    start = time.monotonic()
    for _ in range(trials):
        saved = max(steps_in(workdir), default=0)
        with Training(workdir, steps=10_000, **changes) as training:
            training.until(lambda saved=saved: max(steps_in(workdir), default=0) > saved)
            training.reach(max(steps_in(workdir)) + 50)
            training.send(signal.SIGKILL)
    trained(workdir, steps=max(steps_in(workdir)) + 100, **changes)
    seconds, spent = time.monotonic() - start, time_by_phase(read_json_lines(workdir / "goodput.jsonl"))
    # previews belong to the end, not to a kill
    each = (seconds - spent["step"] - spent["evaluation"]) / (trials + 1)
    goodput = 1 - each / KILL_EVERY
    output = f"{each:.1f} s each: {goodput:.1%} with one every {KILL_EVERY} s"
    return Result("starts, saves and lost work of kills", trials, trials * int(goodput >= MIN_GOODPUT), output)
