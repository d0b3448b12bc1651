"""What a run takes and what kills cost it, measured: each a function ``(bench, trials) -> Result``."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np

from configs.shapes_base import get_config
from imagen_jax.training.goodput import account, read_lines
from tests.faults.harness import Result, Training, losses, steps_in, trained

SAVE_EVERY = 400  # steps
KILL_EVERY = 300  # seconds, in the run that is told of
LEAST_GOODPUT = 0.95


def flat_memory(bench, trials):
    """``trials`` steps, saved now and then: how resident memory and open files grow, after the first fifth."""
    place, seen = bench.new("long"), []
    changes = {"steps": trials, "save_every": SAVE_EVERY, "preview_every": trials, "log_every": 10}
    with Training(place, **changes) as training:
        about = Path(f"/proc/{training.process.pid}")
        while training.process.poll() is None:
            step = max(losses(place), default=0)
            with contextlib.suppress(OSError, IndexError):
                pages = int((about / "statm").read_text().split()[1])
                seen.append((step, pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir(about / "fd"))))
            with contextlib.suppress(subprocess.TimeoutExpired):
                training.process.wait(0.5)
        code, said = training.ended()
    assert code == 0, said
    # without the beginning, in which buffers fill, and the end, at which previews and figures are drawn
    steps, memory, files = np.array([line for line in seen if trials / 5 <= line[0] < trials - 10]).T
    slope = 1000 * np.polyfit(steps, memory, 1)[0]
    half = len(files) // 2
    more_files = np.median(files[half:]) - np.median(files[:half])
    said = f"{slope:+.2f} MB per 1,000 steps, at {np.median(memory):.0f} MB"
    said += f"; {more_files:+.0f} open files, at {np.median(files):.0f}"
    return Result(f"memory of {trials:,} steps", 1, int(slope < 1 and more_files <= 0), said)


def blocking_saves(bench, trials):
    """How long saves hold up the steps of the demo's base stage, saved twice as often as in the demo.

    The last save, which is waited for, is left out. Steps are optimised as in the demo, unlike those of tests.
    """
    place, every = bench.new("shapes"), get_config().training.save_every // 2
    steps = (trials + 1) * every
    changes = {"steps": steps, "save_every": every, "preview_every": steps}
    trained(place, config="configs/shapes_base.py", variables={"XLA_FLAGS": ""}, **changes)
    lines = [line for line in read_lines(place / "goodput.jsonl") if 0 < line["at_step"] < steps]
    spent = lines[-1]
    share = spent["checkpoint"] / spent["step"]
    each = spent["checkpoint"] / (spent["at_step"] // every)
    milliseconds = 1000 * spent["step"] / spent["at_step"]
    said = f"{share:.2%} of step time: {1000 * each:.0f} ms a save, {milliseconds:.0f} ms a step"
    return Result(f"saving every {every} steps", trials, trials * int(share < 0.01), said)


def goodput_under_kills(bench, trials):
    """Kills 50 steps after a save: what each costs by the clock, and what that is with one every five minutes."""
    place, changes = bench.new("goodput"), {"save_every": 100, "preview_every": 10_000, "log_every": 10}
    begun = time.monotonic()
    for _ in range(trials):
        saved = max(steps_in(place), default=0)
        with Training(place, steps=10_000, **changes) as training:
            training.until(lambda saved=saved: max(steps_in(place), default=0) > saved)
            training.reach(max(steps_in(place)) + 50)
            training.send(signal.SIGKILL)
    trained(place, steps=max(steps_in(place)) + 100, **changes)
    seconds, spent = time.monotonic() - begun, account(read_lines(place / "goodput.jsonl"))
    # previews are the end's, and no kill's
    each = (seconds - spent["step"] - spent["evaluation"]) / (trials + 1)
    goodput = 1 - each / KILL_EVERY
    said = f"{each:.1f} s for each, so {goodput:.1%} with one every {KILL_EVERY} s"
    return Result("starts, saves and lost work of kills", trials, trials * int(goodput >= LEAST_GOODPUT), said)
