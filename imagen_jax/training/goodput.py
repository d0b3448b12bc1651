"""Where a run's time goes, across restarts, and its goodput: the share spent on steps that count.

GOODPUT_FILE has a line for each record of each start of the run: the seconds in each phase since that start. The
seconds between the last record and a kill are unknown. Steps recomputed after a crash count as `lost`.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from imagen_jax.io.json_lines import is_count, is_seconds
from imagen_jax.training.run_files import RunFiles

GOODPUT_FILE = "goodput.jsonl"
PHASES = ("start", "compile", "data", "step", "checkpoint", "evaluation")
# the most time that a kill can hide
SECONDS_BETWEEN_RECORDS = 30.0
_COMPILE_EVENTS = "/jax/core/compile/"  # of jax.monitoring: tracing, lowering, XLA


class Phase(NamedTuple):
    """What a run is doing: a name of PHASES, the step, since when, and whether the watchdog limits its time."""

    name: str
    step: int
    since: float
    watched: bool


class Clock:
    """Adds up the time in each phase of this start of a run.

    Args:
        age: seconds that the start has taken already.
    """

    def __init__(self, age: float = 0.0) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._begun = time.monotonic() - age
        self.phase = Phase("start", 0, self._begun, False)
        self._done: set[str] = set()

    @classmethod
    def of_process(cls) -> Clock:
        """Returns a clock that counts from the start of this process: imports are part of a command's time."""
        return cls(process_age())

    @contextlib.contextmanager
    def spend(self, name: str, step: int) -> Iterator[None]:
        """Counts the time of a block to a phase, except for phases nested in it."""
        outer = self._enter(name, step)
        try:
            yield
        finally:
            self._done.add(name)
            self._enter(outer.name, outer.step)

    @contextlib.contextmanager
    def compilation(self) -> Iterator[None]:
        """Counts what JAX compiles in this thread, in a block, to the phase `compile`, whatever phase it happens in.

        So batches of another size, previews and saves do not spoil the time of steps, nor does the watchdog end them.
        """
        thread, depth, outer = threading.get_ident(), 0, self.phase

        def begin(event: str, value: float, **_: Any) -> None:
            nonlocal depth, outer
            if threading.get_ident() == thread and event.startswith(_COMPILE_EVENTS):
                depth += 1
                if depth == 1:
                    outer = self._enter("compile", self.phase.step)

        def end(event: str, duration_secs: float, **_: Any) -> None:
            nonlocal depth
            # a JAX that does not report the beginning has its compilation counted with the step
            if threading.get_ident() == thread and event.startswith(_COMPILE_EVENTS) and depth:
                depth -= 1
                if depth == 0:
                    self._enter(outer.name, outer.step)

        jax.monitoring.register_scalar_listener(begin)
        jax.monitoring.register_event_duration_secs_listener(end)
        try:
            yield
        finally:
            jax.monitoring.unregister_scalar_listener(begin)
            jax.monitoring.unregister_event_duration_listener(end)

    def _enter(self, name: str, step: int) -> Phase:
        now, before = time.monotonic(), self.phase
        self._seconds[before.name] += now - before.since
        # the first phase of a kind includes compilation
        self.phase = Phase(name, step, now, name in self._done and name not in ("start", "compile"))
        return before

    def seconds(self) -> dict[str, float]:
        """Returns the seconds in each phase since the clock was started."""
        now = time.monotonic()
        return {
            name: spent + (now - self.phase.since if name == self.phase.name else 0.0)
            for name, spent in self._seconds.items()
        }


def process_age() -> float:
    """Returns the seconds since this process was started; 0 where the system does not know."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError):
        return 0.0


class Goodput:
    """Accounts for the time of a run over all its starts, in a file of its folder.

    Args:
        files: the run's folder.
        first: the step that this start resumes from.
        clock: of this start.
    """

    def __init__(self, files: RunFiles, first: int, clock: Clock) -> None:
        self._files, self._clock = files, clock
        self._lines = files.open_json_lines(GOODPUT_FILE, _is_record, _are_in_order)
        self._start = max((line["start_number"] for line in self._lines), default=0) + 1
        self.record(first)

    def record(self, step: int) -> None:
        """Records the time so far, at the end of a step."""
        line = {"start_number": self._start, "at_step": step, **self._clock.seconds()}
        self._files.append(GOODPUT_FILE, json.dumps(line).encode() + b"\n")
        self._lines.append(line)
        self._last = time.monotonic()

    def tick(self, step: int) -> None:
        """Records the time if the last record is old."""
        if time.monotonic() - self._last > SECONDS_BETWEEN_RECORDS:
            self.record(step)

    def metrics(self) -> dict[str, float]:
        """Returns `goodput`, and `time/PHASE` in seconds."""
        spent = time_by_phase(self._lines)
        return {"goodput": _goodput(spent), **{f"time/{name}": value for name, value in spent.items()}}

    def summary(self) -> str:
        """Returns goodput and the time of each phase as text."""
        spent = time_by_phase(self._lines)
        phases = ", ".join(f"{name} {seconds:,.1f} s" for name, seconds in spent.items())
        return f"goodput {_goodput(spent):.1%} in {self._start} start(s): {phases}"


def _goodput(spent: dict[str, float]) -> float:
    """Returns the share of time spent on steps that were not lost."""
    return spent["step"] / max(sum(spent.values()), 1e-9)


def time_by_phase(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the seconds in each phase over all starts of a run, from the lines of its file, and `lost` seconds.

    A start loses the time of the steps that it made after the step which the next start resumes from; that time is not
    in `step`.
    """
    starts: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        starts.setdefault(line["start_number"], []).append(line)
    spent = {name: sum(records[-1][name] for records in starts.values()) for name in PHASES}
    lost = 0.0
    ordered = [starts[number] for number in sorted(starts)]
    for records, following in zip(ordered[:-1], ordered[1:], strict=True):
        kept = [line["step"] for line in records if line["at_step"] <= following[0]["at_step"]]
        lost += max(0.0, records[-1]["step"] - max(kept, default=0.0))
    return {**spent, "step": spent["step"] - lost, "lost": lost}


def _is_record(line: dict[str, Any]) -> bool:
    """Returns whether a JSON object has all fields of a record; a damaged one costs that record."""
    counts = is_count(line.get("start_number")) and is_count(line.get("at_step"))
    return counts and all(is_seconds(line.get(name)) for name in PHASES)


def _are_in_order(lines: list[dict[str, Any]]) -> list[bool]:
    """Returns which records belong to the longest sequence whose start numbers do not decrease.

    The others have a damaged number, which would count as a start of its own.
    """
    lowest: list[int] = []  # the lowest last number of a sequence of each length
    lengths = []
    for line in lines:
        length = bisect.bisect_right(lowest, line["start_number"])
        lowest[length : length + 1] = [line["start_number"]]
        lengths.append(length)
    chosen, following, below = [False] * len(lines), len(lowest) - 1, float("inf")
    for index in reversed(range(len(lines))):
        if lengths[index] == following and lines[index]["start_number"] <= below:
            chosen[index], following, below = True, following - 1, lines[index]["start_number"]
    return chosen
