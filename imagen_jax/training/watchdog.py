"""A run that stands still ends, and says where it stood: a machine that waits for ever costs as much as one at work."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import jax

from imagen_jax.training.goodput import Clock

STACKS_FILE = "stacks.txt"
# Beyond the limit: for the system's own watchdog, which needs no Python to run.
MARGIN = 30
SCREEN = 2  # its file descriptor


class Watchdog:
    """Watches how long a run has been in one phase of one step; a context manager.

    Compilation is not watched, and so neither are the first step nor the first previews.

    Args:
        clock: tells the phase.
        seconds: how long one may last.
        folder: where the stacks of all threads go, besides the screen.
        say: takes the sentence that names the step.
    """

    def __init__(self, clock: Clock, seconds: float, folder: Path, say: Callable[[str], None]) -> None:
        self._clock, self._seconds, self._folder, self._say = clock, seconds, folder, say
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
            # a thread that holds Python's lock and never lets go stops this loop too, but not the system's
            faulthandler.dump_traceback_later(self._seconds + MARGIN, exit=True, file=SCREEN)
            phase = self._clock.phase
            if phase.watched and time.monotonic() - phase.since > self._seconds:
                self._end(phase.name, phase.step)

    def _end(self, phase: str, step: int) -> None:
        where = self._folder / f"{STACKS_FILE}.{jax.process_index()}"
        try:
            with where.open("w") as file:
                faulthandler.dump_traceback(file)
            self._say(
                f"step {step} stands still: no end of its phase {phase!r} for {self._seconds:g} seconds "
                f"(training.stall_seconds) in process {jax.process_index()}; {where} has the stacks of its threads"
            )
        except OSError as error:
            print(f"step {step} stands still in {phase!r}, and it cannot be written down: {error}", file=sys.stderr)
        finally:
            sys.stderr.flush()
            faulthandler.dump_traceback(SCREEN)
            os._exit(1)
