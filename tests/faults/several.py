"""Faults of runs of several processes, and runs that resume with other processes or devices.

Each is a function `(bench, trials) -> Result`.
"""

import re
import signal
import time

from imagen_jax.parallel import multihost
from tests.faults.harness import Result, devices, difference, losses, steps_in, together, trained, trained_together
from tests.faults.tiny import SAVE_EVERY

STEPS = 3 * SAVE_EVERY
MARGIN = 15  # seconds from the heartbeat timeout of a process to the end of the others
SUM_ORDER_TOLERANCE = 1e-5  # difference of losses if the batch is split over other devices


def undisturbed_pair(bench):
    """Returns the folder of an undisturbed run of two processes; made once."""
    workdir = bench.folder / "pair" / "stage"
    if not workdir.exists():
        trained_together(workdir, 2, steps=STEPS)
    return workdir


def killed_member(bench, trials):
    """Kills one of two processes, alternately the second and the first; then runs both again."""
    undisturbed, passed, slowest, worst = undisturbed_pair(bench), 0, 0.0, 0.0
    for trial in range(trials):
        workdir, killed = bench.new_workdir("member"), 1 - trial % 2
        with together(workdir, 2, steps=STEPS) as members:
            members[0].reach(SAVE_EVERY + 2)
            start = time.monotonic()
            members[killed].send(signal.SIGKILL)
            code, _ = members[1 - killed].wait_for_end()
        seconds = time.monotonic() - start
        reached = max(losses(workdir))
        trained_together(workdir, 2, steps=STEPS)
        distance = difference(workdir, undisturbed)
        passed += code != 0 and reached < STEPS and seconds < multihost.HEARTBEAT_SECONDS + MARGIN and distance == 0
        slowest, worst = max(slowest, seconds), max(worst, distance)
    return Result("one of 2 processes killed", trials, passed, f"{slowest:.1f} s to exit; difference {worst:g}")


def stalled_member(bench, trials):
    """A step of one of two processes never ends. `killed_member` tests how they resume."""
    workdir, limit = bench.new_workdir("stalled_member"), 10
    with together(workdir, 2, faults={1: "stall:7:7"}, stall_seconds=limit, steps=STEPS) as members:
        members[0].reach(SAVE_EVERY + 1)
        start = time.monotonic()
        ends = [member.wait_for_end() for member in members]
    seconds = time.monotonic() - start
    named = re.search(r"step 7 .*'step'", ends[1][1]) is not None and "process 1" in ends[1][1]
    named = named and "broken_train.py" in (workdir / "stacks.txt.1").read_text()
    passed = named and all(code for code, _ in ends) and seconds < limit + MARGIN
    return Result(f"one of 2 processes stalls; limit {limit} s", 1, int(passed), f"{seconds:.1f} s to exit")


def max_loss_difference(workdir, other):
    """Returns the largest difference of losses at the steps of the first run."""
    mine, theirs = losses(workdir), losses(other)
    return max(abs(mine[step] - theirs[step]) for step in mine)


def other_processes(bench, trials):
    """Resumes a run of two processes with one, and then with two."""
    workdir, passed = bench.new_workdir("processes"), 0
    for part, count in enumerate((2, 1, 2), 1):
        if count == 1:
            trained(workdir, steps=part * SAVE_EVERY)
        else:
            trained_together(workdir, count, steps=part * SAVE_EVERY)
        passed += (
            steps_in(workdir)[-1] == part * SAVE_EVERY
            and max_loss_difference(workdir, bench.undisturbed) < SUM_ORDER_TOLERANCE
        )
    log = (workdir / "log.txt").read_text()
    passed = passed if f"resumed at step {2 * SAVE_EVERY}" in log and log.count("in 2 process(es)") == 2 else 0
    return Result(
        "2 → 1 → 2 processes", 3, passed, f"losses {max_loss_difference(workdir, bench.undisturbed):.1g} apart"
    )


def other_devices(bench, trials):
    """Resumes a run on eight devices with four, one, and eight devices."""
    workdir, passed = bench.new_workdir("devices"), 0
    for part, count in enumerate((8, 4, 1, 8), 1):
        trained(workdir, variables=devices(count), steps=part * SAVE_EVERY)
        reported = f" {count} × cpu in 1 process(es)" in (workdir / "log.txt").read_text()
        passed += (
            reported
            and steps_in(workdir)[-1] == part * SAVE_EVERY
            and max_loss_difference(workdir, bench.undisturbed) < SUM_ORDER_TOLERANCE
        )
    return Result(
        "8 → 4 → 1 → 8 devices", 4, passed, f"losses {max_loss_difference(workdir, bench.undisturbed):.1g} apart"
    )
