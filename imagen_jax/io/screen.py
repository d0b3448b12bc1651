"""The screen: what cannot be written to it is lost, as on a terminal that was closed, or in a file on a full disk."""

from __future__ import annotations

import contextlib
import sys
from typing import Any


class Screen:
    """A text stream whose errors are ignored, so that no message and no progress bar ends the work it is about.

    Args:
        stream: where to write; stderr by default.
    """

    def __init__(self, stream: Any = None) -> None:
        self._stream = sys.stderr if stream is None else stream

    def write(self, text: str) -> int:
        """Writes text, if that is possible."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Writes what is buffered, if that is possible."""
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __eq__(self, other: object) -> bool:  # tqdm moves a bar for lines that go to the same stream
        return self._stream == (other._stream if isinstance(other, Screen) else other)

    def __hash__(self) -> int:
        return hash(self._stream)
