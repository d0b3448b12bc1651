"""Where a run's time goes, across restarts, and how much of it moved the run on: its goodput.

GOODPUT_FILE has a line for each record of each start of the run: the seconds in each phase since that start. A kill
hides the seconds since the last record. Steps that are made again after it are lost work.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from imagen_jax.io.atomic import atomic_write
from imagen_jax.parallel import multihost

GOODPUT_FILE = "goodput.jsonl"
PHASES = ("start", "compile", "data", "step", "checkpoint", "evaluation")
# how much of a run's time a kill can hide
SECONDS_BETWEEN_RECORDS = 30.0


class Phase(NamedTuple):
    """What a run does now: a name of PHASES, at which step, since when, and whether it may take only so long."""

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
        """The time within is of this phase, but for that of phases within it; then the one around it goes on."""
        outer = self._enter(name, step)
        try:
            yield
        finally:
            self._done.add(name)
            self._enter(outer.name, outer.step)

    def _enter(self, name: str, step: int) -> Phase:
        now, before = time.monotonic(), self.phase
        self._seconds[before.name] += now - before.since
        # what was compiled within the first of its kind may have taken long
        self.phase = Phase(name, step, now, name in self._done and name not in ("start", "compile"))
        return before

    def seconds(self) -> dict[str, float]:
        """Phase → seconds since the clock was started; they add up to all of them."""
        now = time.monotonic()
        return {
            name: spent + (now - self.phase.since if name == self.phase.name else 0.0)
            for name, spent in self._seconds.items()
        }


def process_age() -> float:
    """Seconds since this process was started; 0 where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError):
        return 0.0


class Goodput:
    """The account of a run over all its starts, kept in its folder.

    Args:
        workdir: the stage's folder.
        first: the step that this start goes on from.
        clock: of this start.
    """

    def __init__(self, workdir: Path, first: int, clock: Clock) -> None:
        self._file, self._clock = workdir / GOODPUT_FILE, clock
        self._lines = read_lines(self._file)
        self._start = max((line["start_number"] for line in self._lines), default=0) + 1
        if multihost.is_main_process():
            # written anew: a line that a kill cut short must not stick to the next one
            atomic_write(self._file, "".join(json.dumps(line) + "\n" for line in self._lines).encode())
        self.record(first)

    def record(self, step: int) -> None:
        """Writes down the time so far, at the end of a step."""
        line = {"start_number": self._start, "at_step": step, **self._clock.seconds()}
        if multihost.is_main_process():
            with self._file.open("a") as file:
                file.write(json.dumps(line) + "\n")
        self._lines.append(line)
        self._last = time.monotonic()

    def tick(self, step: int) -> None:
        """``record``, if it is long ago."""
        if time.monotonic() - self._last > SECONDS_BETWEEN_RECORDS:
            self.record(step)

    def metrics(self) -> dict[str, float]:
        """``goodput``, and ``time/…`` of each phase in seconds."""
        spent = time_by_phase(self._lines)
        return {"goodput": _goodput(spent), **{f"time/{name}": value for name, value in spent.items()}}

    def words(self) -> str:
        """The account for people."""
        spent = time_by_phase(self._lines)
        phases = ", ".join(f"{name} {seconds:,.1f} s" for name, seconds in spent.items())
        return f"goodput {_goodput(spent):.1%} in {self._start} start(s): {phases}"


def _goodput(spent: dict[str, float]) -> float:
    """The share of an account that was spent on steps that were not lost."""
    return spent["step"] / sum(spent.values())


def time_by_phase(lines: list[dict]) -> dict[str, float]:
    """Phase → seconds of all starts of a run, from the lines of its file, and ``lost``, which is not in ``step``.

    A start loses the time in steps that it made after the step which the next start goes on from.
    """
    starts: dict[int, list[dict]] = {}
    for line in lines:
        starts.setdefault(line["start_number"], []).append(line)
    spent = {name: sum(records[-1][name] for records in starts.values()) for name in PHASES}
    lost = 0.0
    ordered = [starts[number] for number in sorted(starts)]
    for records, following in zip(ordered[:-1], ordered[1:], strict=True):
        kept = [line["step"] for line in records if line["at_step"] <= following[0]["at_step"]]
        lost += records[-1]["step"] - max(kept, default=0.0)
    return {**spent, "step": spent["step"] - lost, "lost": lost}


def read_lines(file: Path) -> list[dict]:
    """The lines of an account; what a kill cut short is left out."""
    lines = []
    with contextlib.suppress(FileNotFoundError):
        for text in file.read_text().splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(text))
    return lines
