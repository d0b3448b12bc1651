"""A run that is asked to stop, by SIGTERM or Ctrl-C, saves first; asked twice, it goes at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

from imagen_jax.parallel.multihost import AnyProcess

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether to stop, and why. Before ``ready`` is set there is nothing to save, and the process just ends."""

    def __init__(self) -> None:
        self.ready = self.asked = False
        self._asked_by = ""
        self._vote = AnyProcess()

    def agreed(self) -> bool:
        """Whether all processes stop after this step; each calls it once a step."""
        self.asked = self._vote(bool(self._asked_by))
        return self.asked

    @property
    def reason(self) -> str:
        """The signal, or who else got it."""
        return self._asked_by or "another process"

    def take(self, number: int) -> None:
        """A signal has come. In a thread of its own: the main one may be compiling for minutes."""
        name = signal.Signals(number).name
        if self._asked_by:
            exit_now(f"{name}: stopped at once, as asked twice; the last checkpoint is intact", 1)
        if not self.ready:
            exit_now(f"{name}: stopped before the first step, nothing is lost; the same command begins again", 0)
        self._asked_by = name
        print(f"{name}: saves after this step, then stops; a second signal stops at once", file=sys.stderr, flush=True)


def stop_message(name: str, reason: str, step: int) -> str:
    """What a run says at the end if it was asked to stop; launchers know by it that the run is not done."""
    return f"{name}: stopped by {reason}; step {step} is saved, and the same command goes on from there"


def exit_now(text: str, code: int) -> None:
    """Says why and ends the process as it stands; what was being written has no name yet."""
    print(f"\n{text}", file=sys.stderr, flush=True)
    os._exit(code)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """A ``Stop`` that signals reach, until the end of the block. In the main thread."""
    stop = StopRequest()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    def watch() -> None:
        while number := theirs.recv(1):
            if number[0] in SIGNALS:
                stop.take(number[0])

    before = [signal.signal(number, lambda *_: None) for number in SIGNALS]
    # The system writes a signal's number there at once; Python's own handlers wait for the main thread.
    wakeup = signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
        ours.close()
        thread.join()
        theirs.close()
