"""Files that are there whole or not at all, whenever the process is killed or the power goes, and JSON read with care.

A file is written under another name and put in place by a rename, once its contents are on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

MAX_JSON = 2**28  # bytes of a file that is read as a whole


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file, and makes its folder if that is not there. If it cannot be written, nothing is left of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_of(path)
    try:
        unfinished.write_bytes(data)
        put_in_place(unfinished, path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes a value as a JSON file that people can read; characters other than ASCII are escaped."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, is longer than MAX_JSON, or nested deeper than Python's stack.
    """
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"it is longer than {MAX_JSON:,} bytes")
    try:
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def unfinished_of(path: Path) -> Path:
    """What a file is called until it is whole."""
    return path.with_name(f".{path.name}.unfinished")


def put_in_place(unfinished: Path, path: Path) -> None:
    """Gives a file its name, once its contents are on the disk, and then the name too."""
    sync(unfinished)
    os.replace(unfinished, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Returns when a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
