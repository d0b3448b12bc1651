"""Reading of data sets on this machine or in a bucket (`gs://`, by fsspec and gcsfs): folders, files, parts of files.

A local file is opened for each read, so that threads need no lock and many files need few descriptors.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from imagen_jax.errors import ConfigError, missing_extra_error
from imagen_jax.io.paths import expand_user

_BUCKET_PREFIX = "gs://"


class FileVersion(NamedTuple):
    """Size and modification time or generation of a file: differs whenever the file has changed."""

    size: int
    modified: str


class Folder:
    """A folder on this machine, in a bucket, or wherever fsspec has a file system for.

    Args:
        path: a local path, or a URL such as `gs://bucket/folder`.

    Raises:
        ConfigError: there is no such folder, or a package for its file system is missing.
    """

    def __init__(self, path: str) -> None:
        self._filesystem, self._root = _open_filesystem(path)
        if not self._filesystem.isdir(self._root):
            raise ConfigError(f"{path!r} is not a folder")

    def list_tree(self) -> dict[str, int]:
        """Lists the files in the folder and below.

        Links to files, also dead ones, count as files. Pipes, devices and links to them do not: reading them may never
        end.

        Returns:
            The sizes of the files, in bytes, by path relative to the folder.
        """
        sizes = {}
        for path, entry in self._filesystem.find(self._root, detail=True).items():
            is_link = entry.get("islink") and (self._filesystem.isfile(path) or not self._filesystem.exists(path))
            if entry["type"] == "file" or is_link:
                sizes[path.removeprefix(self._root).lstrip("/")] = entry["size"] or 0
        return sizes

    def read(self, name: str, end: int | None = None) -> bytes:
        """Reads a file, or its first `end` bytes. Raises OSError.

        Args:
            name: path relative to the folder.
            end: number of bytes to read; None for all.
        """
        return self._filesystem.cat_file(f"{self._root.rstrip('/')}/{name}", end=end)


def is_remote(path: str) -> bool:
    """Returns whether a file is in a bucket."""
    return path.startswith(_BUCKET_PREFIX)


def read_range(path: str, start: int, count: int) -> bytes:
    """Reads up to `count` bytes of a file from byte `start`, fewer at its end. Raises OSError."""
    if is_remote(path):
        return _open_filesystem(path)[0].cat_file(path, start=start, end=start + count)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, count, start)
    finally:
        os.close(descriptor)


def write_file(path: str, data: bytes) -> None:
    """Writes a file atomically: a concurrent reader gets the old contents or the new ones. Raises OSError."""
    if is_remote(path):
        _open_filesystem(path)[0].pipe_file(path, data)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # several processes, also on other machines, may write it at the same time
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as temporary:
        try:
            temporary.write(data)
            temporary.close()
            os.replace(temporary.name, target)
        except BaseException:
            os.unlink(temporary.name)
            raise


def file_version(path: str) -> FileVersion:
    """Returns the version of a file. Raises FileNotFoundError if there is no such file, or it is a folder."""
    if is_remote(path):
        info = _open_filesystem(path)[0].info(path)
        # each version of an object has its own generation; the time may be missing
        return FileVersion(info["size"], str(info.get("generation") or info.get("mtime")))
    if not Path(path).is_file():
        raise FileNotFoundError(path)
    status = os.stat(path)
    return FileVersion(status.st_size, str(status.st_mtime_ns))


def list_files(folder: str, suffix: str) -> list[str]:
    """Returns the sorted paths of the files directly in a folder whose names end in `suffix`."""
    if is_remote(folder):
        names = _open_filesystem(folder)[0].glob(f"{folder.rstrip('/')}/*{suffix}")
        return sorted(_BUCKET_PREFIX + name for name in names)
    return sorted(str(path) for path in Path(folder).glob(f"*{suffix}"))


def _open_filesystem(path: str) -> tuple[Any, str]:
    """Returns (fsspec file system, path in it)."""
    try:
        if is_remote(path):
            filesystem = fsspec.filesystem("gs")
            return filesystem, filesystem._strip_protocol(path)
        return fsspec.core.url_to_fs(expand_user(path))
    except ImportError as error:
        if is_remote(path):
            raise missing_extra_error("gcsfs", "gcs") from error
        raise ConfigError(f"{path!r} cannot be opened: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{path!r} cannot be opened: {error}") from error
