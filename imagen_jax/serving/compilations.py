"""Counts the programs that a thread has compiled, or loaded from the compilation cache."""

from __future__ import annotations

import threading

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"  # once for each program that a process gets


class CompilationCounter:
    """Counts the programs of one thread, the one that enters it.

    Attributes:
        count: programs.
    """

    def __init__(self) -> None:
        self.count = 0
        self._thread = 0

    def __enter__(self) -> CompilationCounter:
        self._thread = threading.get_ident()
        jax.monitoring.register_event_duration_secs_listener(self._on_event)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._on_event)

    def _on_event(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _EVENT and threading.get_ident() == self._thread:
            self.count += 1
