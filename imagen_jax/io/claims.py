"""One writer for a folder: a file lock on a disk, an object with a heartbeat in a bucket.

The system releases a file lock with the process, however it ends. In a bucket, the writer rewrites the object CLAIM
every HEARTBEAT_SECONDS, and another process takes it over if it has not changed for STALE_SECONDS, or at once if its
owner was a process of the same machine that no longer exists. Both are decided by the object's generation, so that of
several that try one succeeds, and no clocks are compared.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagen_jax.errors import TrainingError
from imagen_jax.io.bucket import BucketPath
from imagen_jax.io.paths import bucket_path

LOCK_FILE = ".lock"
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 45.0
_POLL_SECONDS = 1.0
_held: set[str] = set()  # tokens of the claims that this process has

logger = logging.getLogger(__name__)


class ClaimedError(Exception):
    """Another process writes to the folder; the text says which one."""


class Claim:
    """The right to write to a folder."""

    def __init__(self) -> None:
        self._lost_to = ""

    def check(self) -> None:
        """Raises TrainingError if another process has taken the folder over, as from a machine that was suspended."""
        if self._lost_to:
            raise TrainingError(
                f"{self._lost_to} has taken over this folder, because this process did not refresh its claim for "
                f"{STALE_SECONDS:g} seconds; its checkpoints are intact, and the other process continues from them"
            )


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[Claim]:
    """Creates a folder and claims it for this process.

    Raises:
        ClaimedError: another process has it.
        OSError: the folder is not writable.
    """
    bucket = bucket_path(folder)
    with _object_claim(bucket / LOCK_FILE) if bucket is not None else _file_lock(folder) as held:
        yield held


@contextlib.contextmanager
def _file_lock(folder: Path) -> Iterator[Claim]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+", encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ClaimedError(_describe(file.read())) from error
        file.truncate(0)
        file.write(json.dumps(_owner()))
        file.flush()
        try:
            yield Claim()
        finally:
            file.truncate(0)


def _owner() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}


def _describe(text: str | bytes) -> str:
    """Returns who has a claim, by the text in it."""
    try:
        owner = json.loads(text)
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"  # which is just starting or ending


class _ObjectClaim(Claim):
    """A claim whose object a thread rewrites."""

    def __init__(self, path: BucketPath, owner: dict[str, Any], generation: int) -> None:
        super().__init__()
        self._path, self._owner, self._generation = path, owner, generation
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="claim", daemon=True)
        self._thread.start()

    def _refresh(self) -> None:
        beat = 0
        while not (self._over.wait(HEARTBEAT_SECONDS) or self._lost_to):
            beat += 1
            try:
                self._generation = _put(self._path, {**self._owner, "beat": beat}, self._generation)
            except FileExistsError:
                self._lost_to = _describe(_read(self._path)[0])
            except OSError as error:
                logger.warning(f"the claim of the folder cannot be refreshed: {error}")

    def release(self) -> None:
        """Gives the folder back."""
        self._over.set()
        self._thread.join()
        if not self._lost_to:
            with contextlib.suppress(OSError):  # then it becomes stale
                self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def _object_claim(path: BucketPath) -> Iterator[Claim]:
    owner = {**_owner(), "machine": _machine(), "started": _start_time(os.getpid()), "token": secrets.token_hex(8)}
    _held.add(owner["token"])
    try:
        held = _ObjectClaim(path, owner, _acquire(path, owner))
        try:
            yield held
        finally:
            held.release()
    finally:
        _held.discard(owner["token"])


def _acquire(path: BucketPath, owner: dict[str, Any]) -> int:
    """Writes a claim, once the one before it is stale, and returns its generation."""
    seen, since = None, time.monotonic()
    while True:
        text, generation = _read(path)
        if generation and generation != seen:
            if seen is not None:
                raise ClaimedError(_describe(text))  # it is refreshed
            seen, since = generation, time.monotonic()
            if not _is_dead(text):
                who = _describe(text)
                logger.warning(f"{path.parent} is claimed by {who}: waiting {STALE_SECONDS:g} seconds for a heartbeat")
        if not generation or _is_dead(text) or time.monotonic() - since > STALE_SECONDS:
            try:
                return _put(path, {**owner, "beat": 0}, generation)
            except FileExistsError:
                seen = seen or -1
                continue
        time.sleep(_POLL_SECONDS)


def _put(path: BucketPath, value: dict[str, Any], generation: int) -> int:
    """Writes a claim in the place of a generation. Raises FileExistsError if there is another one by now."""
    data = json.dumps(value).encode()
    try:
        return path.put(data, replaces=generation)
    except FileExistsError:
        # the answer to an attempt that was repeated may have been lost
        text, current = _read(path)
        if text == data:
            return current
        raise


def _read(path: BucketPath) -> tuple[bytes, int]:
    """Returns the text of a claim and its generation; (b"", 0) if there is none."""
    try:
        generation = path.stat().generation
        return path.read_bytes(), generation
    except FileNotFoundError:
        return b"", 0


def _is_dead(text: bytes) -> bool:
    """Returns whether a claim's owner was a process of this machine that no longer exists, or has given it back."""
    try:
        owner = json.loads(text)
        if owner["machine"] != _machine() or not _machine():
            return False
        is_gone = _start_time(owner["pid"]) != owner["started"]
        # the bucket may not have answered when this process gave it back
        return is_gone or (owner["pid"] == os.getpid() and owner["token"] not in _held)
    except (ValueError, KeyError, TypeError):
        return False


def _machine() -> str:
    """Returns what identifies this boot of this machine, and the container; "" if that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _start_time(pid: int) -> str:
    """Returns when a process was started, in the kernel's ticks; "" if there is no such process, or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""
