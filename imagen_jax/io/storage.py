"""Parts of files, wherever these lie: on this machine, or in Google Cloud Storage (``gs://``, by fsspec and gcsfs).

A local file is opened for each read, and so threads need no lock, and many files few descriptors.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from imagen_jax.errors import ConfigError

REMOTE = "gs://"


class Stamp(NamedTuple):
    """What changes when a file does."""

    size: int
    modified: str


def is_remote(path: str) -> bool:
    """Whether a file lies in the cloud."""
    return path.startswith(REMOTE)


def read_part(path: str, at: int, count: int) -> bytes:
    """So many bytes of a file from byte ``at``, fewer where it has no more. Raises OSError as reading does."""
    if is_remote(path):
        return _filesystem().cat_file(path, start=at, end=at + count)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, count, at)
    finally:
        os.close(descriptor)


def put(path: str, data: bytes) -> None:
    """Writes a file in one piece: whoever reads meanwhile finds the old one or the new. Raises OSError."""
    if is_remote(path):
        _filesystem().pipe_file(path, data)
        return
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    # several processes, also of other machines, may be about to write it
    with tempfile.NamedTemporaryFile(dir=place.parent, prefix=f".{place.name}.", delete=False) as unfinished:
        try:
            unfinished.write(data)
            unfinished.close()
            os.replace(unfinished.name, place)
        except BaseException:
            os.unlink(unfinished.name)
            raise


def stamp(path: str) -> Stamp:
    """The size and time of a file. Raises FileNotFoundError if it is not there, or is no file."""
    if is_remote(path):
        found = _filesystem().info(path)
        # a generation is another for each version of an object, a time may be missing
        return Stamp(found["size"], str(found.get("generation") or found.get("mtime")))
    if not Path(path).is_file():
        raise FileNotFoundError(path)
    status = os.stat(path)
    return Stamp(status.st_size, str(status.st_mtime_ns))


def files_in(folder: str, ending: str) -> list[str]:
    """The paths of the files of a folder whose names end so, sorted."""
    if is_remote(folder):
        return sorted(REMOTE + name for name in _filesystem().glob(f"{folder.rstrip('/')}/*{ending}"))
    return sorted(str(path) for path in Path(folder).glob(f"*{ending}"))


def _filesystem() -> Any:
    try:
        return fsspec.filesystem("gs")
    except ImportError as error:
        raise ConfigError("files of gs:// need gcsfs: pip install gcsfs") from error
