"""Runs of several processes, and such as go on with others: each a function ``(bench, trials) -> Result``."""

import signal
import time

from imagen_jax.parallel import multihost
from tests.faults.harness import Result, devices, difference, losses, steps_in, together, trained, trained_together
from tests.faults.tiny import SAVE_EVERY

STEPS = 3 * SAVE_EVERY
MARGIN = 15  # seconds from the end of a process's heartbeats, as the others see it, to their own end
ORDER_OF_SUMS = 1e-5  # by how much losses may differ where other devices share the batch


def unbroken_pair(bench):
    """The folder of a run of two processes that nothing broke; made once."""
    place = bench.folder / "pair" / "stage"
    if not place.exists():
        trained_together(place, 2, steps=STEPS)
    return place


def killed_member(bench, trials):
    """One of two processes is killed, now the second and now the first; then both again."""
    unbroken, held, slowest, worst = unbroken_pair(bench), 0, 0.0, 0.0
    for trial in range(trials):
        place, killed = bench.new("member"), 1 - trial % 2
        with together(place, 2, steps=STEPS) as members:
            members[0].reach(SAVE_EVERY + 2)
            begun = time.monotonic()
            members[killed].send(signal.SIGKILL)
            code, _ = members[1 - killed].ended()
        seconds = time.monotonic() - begun
        reached = max(losses(place))
        trained_together(place, 2, steps=STEPS)
        apart = difference(place, unbroken)
        held += code != 0 and reached < STEPS and seconds < multihost.HEARTBEAT_SECONDS + MARGIN and apart == 0
        slowest, worst = max(slowest, seconds), max(worst, apart)
    return Result("one of 2 processes killed", trials, held, f"{slowest:.1f} s to exit; difference {worst:g}")


def stalled_member(bench, trials):
    """A step that never ends in one of two processes. How they go on is a matter of ``killed_member``."""
    place, limit = bench.new("stalled_member"), 10
    with together(place, 2, faults={1: "stall:7:7"}, stall_seconds=limit, steps=STEPS) as members:
        members[0].reach(SAVE_EVERY + 1)
        begun = time.monotonic()
        ends = [member.ended() for member in members]
    seconds = time.monotonic() - begun
    named = "step 7 stands still: no end of its phase 'step'" in ends[1][1] and "in process 1" in ends[1][1]
    named = named and "broken_train.py" in (place / "stacks.txt.1").read_text()
    held = named and all(code for code, _ in ends) and seconds < limit + MARGIN
    return Result(f"one of 2 processes stalls; limit {limit} s", 1, int(held), f"{seconds:.1f} s to exit")


def farthest(workdir, other):
    """The largest difference of losses at the steps of the first run."""
    mine, theirs = losses(workdir), losses(other)
    return max(abs(mine[step] - theirs[step]) for step in mine)


def other_processes(bench, trials):
    """Two processes, then one, then two."""
    place, held = bench.new("processes"), 0
    for part, count in enumerate((2, 1, 2), 1):
        if count == 1:
            trained(place, steps=part * SAVE_EVERY)
        else:
            trained_together(place, count, steps=part * SAVE_EVERY)
        held += steps_in(place)[-1] == part * SAVE_EVERY and farthest(place, bench.unbroken) < ORDER_OF_SUMS
    log = (place / "log.txt").read_text()
    held = held if f"resumed at step {2 * SAVE_EVERY}" in log and log.count("of 2 process(es)") == 2 else 0
    return Result("2 → 1 → 2 processes", 3, held, f"losses {farthest(place, bench.unbroken):.1g} apart")


def other_devices(bench, trials):
    """Eight devices, then four, one, and eight again."""
    place, held = bench.new("devices"), 0
    for part, count in enumerate((8, 4, 1, 8), 1):
        trained(place, variables=devices(count), steps=part * SAVE_EVERY)
        told = f" {count} device(s) of 1 process(es)" in (place / "log.txt").read_text()
        held += told and steps_in(place)[-1] == part * SAVE_EVERY and farthest(place, bench.unbroken) < ORDER_OF_SUMS
    return Result("8 → 4 → 1 → 8 devices", 4, held, f"losses {farthest(place, bench.unbroken):.1g} apart")
