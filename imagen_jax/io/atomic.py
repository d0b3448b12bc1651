"""Atomic file writes that survive kills and power loss, and limited JSON reads.

A file is written under a temporary name, synced to disk, and renamed; in a bucket, it is one object, which appears when
it is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from imagen_jax.io.paths import bucket_path

_MAX_JSON_BYTES = 2**28


def atomic_write(path: Path, data: bytes) -> None:
    """Writes a file atomically, and creates its folder. Raises OSError and leaves no partial file if that fails."""
    bucket = bucket_path(path)
    if bucket is not None:
        bucket.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temp_path(path)
    try:
        temporary.write_bytes(data)
        commit(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yields a file that takes the place of one on a disk when the block is left, unless it raises.

    Several processes may do so at the same time, also on several machines: each writes a file of its own. It has the
    permissions that any new file of this process has.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    file = temporary.open("xb")  # what `tempfile` makes is for its owner only
    try:
        with file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes a value as an indented ASCII JSON file, atomically. Raises OSError."""
    atomic_write(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Returns a value as the content of an indented ASCII JSON file."""
    return (json.dumps(value, indent=2) + "\n").encode()


def read_json(path: Path) -> Any:
    """Returns the value of a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, is larger than 256 MiB, or is nested too deeply.
    """
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ValueError(f"it is larger than {_MAX_JSON_BYTES:,} bytes")
    try:
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def temp_path(path: Path) -> Path:
    """Returns the temporary path of a file until it is committed: beside it, or on a local disk for a bucket."""
    if bucket_path(path) is not None:
        return Path(tempfile.gettempdir()) / f".{path.name}.{os.getpid()}.unfinished"
    return path.with_name(f".{path.name}.unfinished")


def commit(temporary: Path, path: Path) -> None:
    """Renames a temporary file after syncing its contents to disk, then syncs the folder; or uploads it.

    Raises OSError.
    """
    bucket = bucket_path(path)
    if bucket is not None:
        bucket.upload(str(temporary))
        temporary.unlink()
        return
    _fsync(temporary)
    os.replace(temporary, path)
    _fsync(path.parent)


def commit_folder(temporary: Path, folder: Path) -> None:
    """Renames a temporary folder after syncing its contents to disk; a folder that has its name is deleted.

    Both are on the same disk. A kill between the renames leaves the old folder as `.NAME.replaced`.

    Raises:
        OSError: a file cannot be synced, or a folder not be renamed.
    """
    for path in [*temporary.rglob("*"), temporary]:
        _fsync(path)
    temporary.chmod(_new_folder_mode())
    replaced = folder.with_name(f".{folder.name}.replaced")
    if folder.is_dir():
        shutil.rmtree(replaced, ignore_errors=True)
        os.replace(folder, replaced)
    os.replace(temporary, folder)
    _fsync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _new_folder_mode() -> int:
    """Returns the permissions of a new folder of this process; `tempfile` makes folders for their owner only."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o777 & ~mask


def _fsync(path: Path) -> None:
    """Syncs a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal; one in a bucket is read once. Raises OSError."""
    bucket = bucket_path(path)
    if bucket is not None:
        digest = _HashFile()
        bucket.download(digest)
        return digest.hash.hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _HashFile(io.RawIOBase):
    """A file that keeps the SHA-256 of what is written to it."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return len(data)
