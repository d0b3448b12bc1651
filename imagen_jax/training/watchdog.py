"""Ends a run that is stalled and names where: a machine that waits forever costs as much as one at work."""

from __future__ import annotations

import faulthandler
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import jax

from imagen_jax.io import uploads
from imagen_jax.io.atomic import atomic_write
from imagen_jax.training.goodput import Clock

STACKS_FILE = "stacks.txt"
# Seconds beyond the limit, for faulthandler's own timer, which needs no Python to run.
MARGIN = 30
SCREEN = 2  # its file descriptor


class Watchdog:
    """Ends the process when a run has been in one phase of one step for too long; a context manager.

    Compilation is not watched, at any step; nor are the first step and the first preview.

    Args:
        clock: has the current phase.
        seconds: how long a phase may last.
        folder: gets the stacks of all threads, which are printed too.
        log: takes the message that names the step.
    """

    def __init__(self, clock: Clock, seconds: float, folder: Path, log: Callable[[str], None]) -> None:
        self._clock, self._seconds, self._folder, self._log = clock, seconds, folder, log
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._over.wait(min(5.0, self._seconds / 4)):
            # a thread that never releases Python's lock stops this loop too, but not the system's timer
            faulthandler.dump_traceback_later(self._seconds + MARGIN, exit=True, file=SCREEN)
            phase = self._clock.phase
            if phase.watched and time.monotonic() - phase.since > self._seconds:
                self._end(phase.name, phase.step)

    def _end(self, phase: str, step: int) -> None:
        where = self._folder / f"{STACKS_FILE}.{jax.process_index()}"
        try:
            with tempfile.TemporaryFile() as file:  # the stacks are written to a file of the system
                faulthandler.dump_traceback(file)
                file.seek(0)
                atomic_write(where, file.read())
            self._log(
                f"step {step} is stalled: its phase {phase!r} has not ended for {self._seconds:g} seconds "
                f"(training.stall_seconds) in process {jax.process_index()}; {where} has the stacks of its threads"
            )
            uploads.flush()
        except OSError as error:
            print(f"step {step} is stalled in {phase!r}, and stacks cannot be written: {error}", file=sys.stderr)
        finally:
            sys.stderr.flush()
            faulthandler.dump_traceback(SCREEN)
            os._exit(1)
