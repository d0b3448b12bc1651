"""Files that grow while a run writes them: appended to on a disk, uploaded in parts to a bucket, which has no append.

What is to be uploaded is kept in memory until `flush` is called or SECONDS have passed; that much is lost if the
process is killed. Checkpoints flush before they are committed, so that a run resumes with all that was written until
then.

A file of a bucket is an object FILE and further parts FILE.0001, FILE.0002, …, each rewritten until it has PART_BYTES.
"""

from __future__ import annotations

import errno
import logging
import re
import threading
from pathlib import Path

from imagen_jax.io.bucket import BucketPath
from imagen_jax.io.paths import bucket_path

SECONDS = 15.0
PART_BYTES = 2**20
_FIRST_PART = "first-part"  # key of the object's own metadata: earlier parts are contained in the object

logger = logging.getLogger(__name__)


class _Uploads:
    """What waits to be uploaded, and the thread that does so."""

    def __init__(self) -> None:
        self.logs: dict[str, _Log] = {}
        self.lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread; the lock is held."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="uploads", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        failing = False
        while True:
            self._wake.wait(SECONDS)
            try:
                self.flush()
                failing = False
            except OSError as error:
                if not failing:
                    logger.warning(f"logs and metrics wait to be uploaded: {error}")
                failing = True

    def flush(self) -> None:
        with self.lock:
            logs = list(self.logs.values())
        errors: list[OSError] = []
        silent = set()  # buckets that do not answer: each attempt takes minutes
        for log in logs:
            if log.bucket in silent:
                continue
            try:
                log.flush()
            except OSError as error:  # of this file, or of a bucket that another run has written to
                errors.append(error)
                if error.errno == errno.EIO:
                    silent.add(log.bucket)
        if errors:
            raise errors[0]


_uploads = _Uploads()


def flush() -> None:
    """Uploads all that waits. Raises OSError if that fails; then it still waits."""
    _uploads.flush()


def flush_or_warn() -> None:
    """Uploads all that waits; logs a warning if that fails."""
    try:
        flush()
    except OSError as error:
        logger.warning(f"some lines of logs and metrics are not uploaded: {error}")


def append_text(file: Path, text: str) -> None:
    """Appends text to a file. Raises OSError; for a bucket, `flush` does."""
    if bucket_path(file) is not None:
        append_bytes(file, text.encode())
        return
    with file.open("a") as opened:
        opened.write(text)


def append_bytes(file: Path, data: bytes) -> None:
    """Appends bytes to a file of a bucket: `flush` uploads them, or a thread does soon. They stay in one part."""
    path = bucket_path(file)
    assert path is not None
    with _uploads.lock:
        _uploads.start()
        log = _uploads.logs.setdefault(str(path), _Log(path))
    log.append(data)


def read_appended(file: Path) -> bytes:
    """Returns what was appended to a file. Raises FileNotFoundError if there is no such file, or another OSError."""
    path = bucket_path(file)
    if path is None:
        return file.read_bytes()
    with _uploads.lock:
        log = _uploads.logs.get(str(path))
    if log is not None:
        log.flush()
    parts = _parts(path)
    if not parts and not path.is_file():
        return path.read_bytes()  # raises
    base = path.read_bytes() if path.is_file() else b""
    return base + b"".join(part.read_bytes() for part in parts.values())


def replace_appended(file: Path, data: bytes) -> None:
    """Replaces all that was appended to a file of a bucket, atomically. Raises OSError."""
    path = bucket_path(file)
    assert path is not None
    with _uploads.lock:
        _uploads.logs.pop(str(path), None)
    parts = _all_parts(path)
    path.put(data, metadata={_FIRST_PART: str(max(parts, default=0) + 1)})
    for part in parts.values():
        part.unlink(missing_ok=True)


def _all_parts(path: BucketPath) -> dict[int, BucketPath]:
    """Returns the objects with the parts of a file, by number."""
    numbered = re.compile(rf"{re.escape(path.name)}\.(\d{{4,}})")
    matches = ((numbered.fullmatch(other.name), other) for other in path.parent.iterdir())
    return {int(match[1]): other for match, other in matches if match}


def _parts(path: BucketPath) -> dict[int, BucketPath]:
    """Returns the parts of a file that its first object does not contain."""
    parts = _all_parts(path)
    first = _first_part(path) if parts else 0
    return {number: parts[number] for number in sorted(parts) if number >= first}


def _first_part(path: BucketPath) -> int:
    """Returns the number of the first part that a file's first object does not contain."""
    try:
        return int(path.stat().metadata.get(_FIRST_PART, 1))
    except FileNotFoundError:
        return 1


class _Log:
    """The end of a file that this process appends to; it begins with a part of its own."""

    def __init__(self, path: BucketPath) -> None:
        self._path = path
        self._part: int | None = None  # None until it is known which parts there are
        self._data = bytearray()  # of the last part
        self._full: list[bytes] = []  # parts before it, to be uploaded
        self._changed = False
        self._lock = threading.Lock()  # of these fields, held for moments
        self._uploading = threading.Lock()

    @property
    def bucket(self) -> str:
        return self._path.bucket

    def append(self, data: bytes) -> None:
        with self._lock:
            if len(self._data) >= PART_BYTES:
                self._full.append(bytes(self._data))
                self._data.clear()
            self._data += data
            self._changed = True

    def flush(self) -> None:
        with self._uploading:
            if self._part is None:
                self._part = max([_first_part(self._path), *(number + 1 for number in _all_parts(self._path))])
            while True:
                with self._lock:
                    if not (self._full or self._changed):
                        return
                    data = self._full[0] if self._full else bytes(self._data)
                    is_full, size = bool(self._full), len(self._data)
                self._path.with_name(f"{self._path.name}.{self._part:04d}").write_bytes(data)
                with self._lock:
                    if is_full:
                        self._full.pop(0)
                        self._part += 1
                    elif not self._full:
                        self._changed = len(self._data) != size
