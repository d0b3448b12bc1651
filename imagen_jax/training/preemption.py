"""Stopping a run by SIGTERM or Ctrl-C: it saves first; a second signal ends it at once."""

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


class StoppedError(Exception):
    """What is not a run, such as sampling before it, ends because a stop was asked for."""


class StopRequest:
    """Whether a run is to stop, and why. Before `ready` is set there is nothing to save: a signal ends the process."""

    def __init__(self) -> None:
        self.ready = self.asked = False
        self._asked_by = ""
        self._vote = AnyProcess()

    def should_stop(self) -> bool:
        """Returns whether all processes stop after this step; each calls it once a step."""
        self.asked = self._vote(bool(self._asked_by))
        return self.asked

    def ask(self, reason: str) -> None:
        """Asks the run to save and to return; from any thread, at any time."""
        self._asked_by = reason

    def check(self, _progress: object = None) -> None:
        """Raises StoppedError if a stop was asked for; a callback of what can begin again without loss."""
        if self._asked_by:
            raise StoppedError(self._asked_by)

    @property
    def reason(self) -> str:
        """What asked the run to stop: a signal, a caller of `ask`, or another process."""
        return self._asked_by or "another process"

    def on_signal(self, number: int) -> None:
        """Handles a signal, in a thread of its own: the main thread may be compiling for minutes."""
        name = signal.Signals(number).name
        if self._asked_by:
            _exit_now(f"{name}: stopped at once, as asked twice; the last checkpoint is intact", 1)
        if not self.ready:
            _exit_now(f"{name}: stopped before the first step, nothing is lost; the same command starts again", 0)
        self._asked_by = name
        print(f"{name}: saves after this step, then stops; a second signal stops at once", file=sys.stderr, flush=True)


def stop_message(name: str, reason: str, step: int) -> str:
    """Returns the message of a run that was asked to stop; launch scripts recognize an incomplete run by it."""
    return f"{name}: stopped by {reason}; step {step} is saved, and the same command resumes from there"


def _exit_now(text: str, code: int) -> None:
    """Prints why and ends the process at once; files that were being written have only temporary names."""
    print(f"\n{text}", file=sys.stderr, flush=True)
    os._exit(code)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Yields a `StopRequest` that signals are sent to until the end of the block. For the main thread."""
    stop = StopRequest()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    def watch() -> None:
        while number := theirs.recv(1):
            if number[0] in SIGNALS:
                stop.on_signal(number[0])

    before = [signal.signal(number, lambda *_: None) for number in SIGNALS]
    # The system writes a signal's number to the socket at once; Python's handlers wait for the main thread.
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
