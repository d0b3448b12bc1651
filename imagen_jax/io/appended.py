"""Files that grow by records; a record that cannot be written waits in memory and costs nothing else.

On a disk a record is written at once, entirely or not at all: what a full disk takes of it is removed again. In a
bucket, `uploads` does the same in the background.
"""

from __future__ import annotations

import collections
import contextlib
import os
import time
from pathlib import Path

from imagen_jax.io import uploads
from imagen_jax.io.atomic import atomic_write
from imagen_jax.io.paths import bucket_path

WAITING_BYTES = 2**24
# Until the next attempt after one that failed; a file system that takes long to fail is tried less often.
_PAUSE_SECONDS = 1.0
_PAUSE_FACTOR = 10.0


class AppendedFile:
    """A file that records are appended to. Not for several threads at once.

    Args:
        path: the file, in a folder or a bucket.
        header: the file's first bytes, written again if the file is deleted.
        separator: what ends each record of a file that is read by lines; the first record of this process begins with
            it if the file ends within a line. b"" for other files.
    """

    def __init__(self, path: Path, header: bytes = b"", separator: bytes = b"\n") -> None:
        self.path = path
        self.lost = 0  # records that were dropped because too many waited
        self._header, self._separator = header, separator
        self._waiting: collections.deque[bytes] = collections.deque()
        self._content: bytes | None = None  # what replaces the file's content at the next flush
        self._torn: tuple[int, int, int] | None = None  # device, inode and size before a write that was not undone
        self._is_begun = False
        self._next_attempt = 0.0

    @property
    def waiting(self) -> int:
        """The number of records that are not written."""
        return len(self._waiting) + (self._content is not None)

    @property
    def is_due(self) -> bool:
        """Whether enough time has passed since the last failure."""
        return time.monotonic() >= self._next_attempt

    def append(self, record: bytes) -> None:
        """Adds a record to those that wait; beyond WAITING_BYTES the oldest are dropped."""
        self._waiting.append(record)
        size = sum(map(len, self._waiting)) if len(self._waiting) > 1 else 0
        while size > WAITING_BYTES and len(self._waiting) > 1:
            size -= len(self._waiting.popleft())
            self.lost += 1

    def replace(self, content: bytes) -> None:
        """Has the next flush replace the file's content, atomically."""
        self._content = content

    def flush(self) -> None:
        """Writes all records that wait. Raises OSError if that fails; then they wait on."""
        begun = time.monotonic()
        try:
            if self._content is not None:
                self._replace(self._content)
                self._content = None
            if self._waiting:
                self._write(b"".join(self._waiting))
                self._waiting.clear()
        except OSError:
            now = time.monotonic()
            self._next_attempt = now + max(_PAUSE_SECONDS, _PAUSE_FACTOR * (now - begun))
            raise

    def _replace(self, content: bytes) -> None:
        if bucket_path(self.path) is not None:
            uploads.replace_appended(self.path, content)
            return
        before = self.path.read_bytes() if self.path.exists() else b""
        if before.startswith(content):  # needs no space, as a copy would
            if len(before) > len(content):
                os.truncate(self.path, len(content))
        else:
            atomic_write(self.path, content)

    def _write(self, data: bytes) -> None:
        if bucket_path(self.path) is not None:
            uploads.append_bytes(self.path, data if self._is_begun else self._header + data)
            self._is_begun = True
            return
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        before: os.stat_result | None = None
        try:
            try:
                before = self._before(descriptor)
                self._write_fully(descriptor, self._start(descriptor, before.st_size) + data)
            finally:
                os.close(descriptor)  # where a network file system may report what went wrong
        except OSError:
            if before is not None:
                self._undo(before)
            raise
        self._is_begun = True

    def _before(self, descriptor: int) -> os.stat_result:
        """Returns the file's state, without the beginning of a record that a failed write has left."""
        state = os.fstat(descriptor)
        if self._torn is not None:
            device, inode, size = self._torn
            if (state.st_dev, state.st_ino) == (device, inode) and state.st_size > size:
                os.ftruncate(descriptor, size)
                state = os.fstat(descriptor)
            self._torn = None
        return state

    def _start(self, descriptor: int, size: int) -> bytes:
        """Returns what is to be written before the first record."""
        if size == 0:
            return self._header
        if self._is_begun or not self._separator:
            return b""
        # a kill may have left half a line
        return b"" if os.pread(descriptor, 1, size - 1) == self._separator else self._separator

    @staticmethod
    def _write_fully(descriptor: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def _undo(self, before: os.stat_result) -> None:
        """Removes what a failed write has left, now or before the next write."""
        self._torn = before.st_dev, before.st_ino, before.st_size
        with contextlib.suppress(OSError):
            state = os.stat(self.path)
            if (state.st_dev, state.st_ino) == (before.st_dev, before.st_ino):
                if state.st_size > before.st_size:
                    os.truncate(self.path, before.st_size)
                self._torn = None
