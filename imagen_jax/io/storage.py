"""Reading of data sets on this machine or in a bucket (`gs://`, by fsspec and gcsfs): folders, files, parts of files.

A local file is opened for each read, so that threads need no lock and many files need few descriptors.
"""

from __future__ import annotations

import collections
import glob
import heapq
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from imagen_jax.errors import ConfigError, missing_extra_error
from imagen_jax.io.atomic import replacing
from imagen_jax.io.paths import expand_user

_BUCKET_PREFIX = "gs://"

# why something in a folder is not listed, or cannot be read
DEAD_LINK = "the link leads nowhere"
LINK_LOOP = "the link leads to a folder that it is in: its files would repeat without end"
SECOND_LINK = "the folder is read already under another path: its files would count twice"
HIDDEN_LINK = "hidden links to folders are not followed"
NO_FILE = "pipes, sockets and devices are not read"
NO_ACCESS = "the folder cannot be read: correct its permissions"


class FileVersion(NamedTuple):
    """Size and modification time or generation of a file: differs whenever the file has changed."""

    size: int
    modified: str


class Listing(NamedTuple):
    """The files in a folder and below.

    Attributes:
        sizes: in bytes, by path relative to the folder.
        skipped: paths of what is not listed or leads nowhere, by reason.
    """

    sizes: dict[str, int]
    skipped: dict[str, list[str]]


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

    def list_tree(self) -> Listing:
        """Lists the files in the folder and below.

        On this machine, links to folders are followed, to each folder once: neither loops nor a second link to a folder
        let its files count twice. Links to files, also dead ones, count as files. Pipes, devices and links to them do
        not: reading them may never end.
        """
        if isinstance(self._filesystem, LocalFileSystem):
            return _list_local(self._root)
        sizes = {}
        for path, entry in self._filesystem.find(self._root, detail=True).items():
            if entry["type"] == "file":
                sizes[path.removeprefix(self._root).lstrip("/")] = entry["size"] or 0
        return Listing(sizes, {})

    def read(self, name: str, end: int | None = None) -> bytes:
        """Reads a file, or its first `end` bytes. Raises OSError.

        Args:
            name: path relative to the folder.
            end: number of bytes to read; None for all.
        """
        return self._filesystem.cat_file(f"{self._root.rstrip('/')}/{name}", end=end)


def _list_local(root: str) -> Listing:
    """Lists a folder on this machine, see `Folder.list_tree`.

    Real folders come first, then links in the order of their paths: what a link leads to is found under its real path
    if that is in the folder too.
    """
    sizes: dict[str, int] = {}
    skipped: dict[str, list[str]] = collections.defaultdict(list)
    seen: set[tuple[int, int]] = set()  # device and inode of the folders that are listed
    links: list[str] = [""]
    while links:
        link = heapq.heappop(links)
        folder = os.path.join(root, link)
        if link and _is_loop(folder):
            skipped[LINK_LOOP].append(link)
            continue
        if link and _identity(folder) in seen:
            skipped[SECOND_LINK].append(link)
            continue
        for other in _list_folders(root, link, seen, sizes, skipped):
            heapq.heappush(links, other)
    return Listing(sizes, dict(skipped))


def _list_folders(
    root: str, top: str, seen: set[tuple[int, int]], sizes: dict[str, int], skipped: dict[str, list[str]]
) -> list[str]:
    """Lists a folder and the real folders below it; adds to the last three arguments.

    Returns:
        The links to folders in them, which are not followed yet.
    """
    links, pending = [], [top]
    while pending:
        folder = pending.pop()
        try:
            identity = _identity(os.path.join(root, folder))
            if identity in seen:
                skipped[SECOND_LINK].append(folder)
                continue
            with os.scandir(os.path.join(root, folder)) as entries:
                listed = list(entries)
        except OSError:
            skipped[NO_ACCESS].append(folder or ".")
            continue
        seen.add(identity)
        for entry in listed:
            name = f"{folder}/{entry.name}" if folder else entry.name
            mode, size = _mode_and_size(entry)
            if mode is None:
                skipped[DEAD_LINK].append(name)
                sizes[name] = 0
            elif stat.S_ISREG(mode):
                sizes[name] = size
            elif not stat.S_ISDIR(mode):
                skipped[NO_FILE].append(name)
            elif entry.is_symlink() and entry.name.startswith("."):
                skipped[HIDDEN_LINK].append(name)
            elif entry.is_symlink():
                links.append(name)
            else:
                pending.append(name)
    return links


def _mode_and_size(entry: os.DirEntry[str]) -> tuple[int | None, int]:
    """Returns (mode, size) of what an entry is or links to; (None, 0) for a link that leads nowhere."""
    try:
        status = entry.stat()
    except OSError:
        return None, 0
    return status.st_mode, status.st_size


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_loop(link: str) -> bool:
    """Returns whether a link leads to a folder that it is in."""
    target, folder = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return os.path.commonpath([target, folder]) == target


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


def open_file(path: str) -> Any:
    """Opens a file for reading, with random access. Raises OSError."""
    return _open_filesystem(path)[0].open(path, "rb")


def is_file(path: str) -> bool:
    """Returns whether there is a file, not a folder."""
    return _open_filesystem(path)[0].isfile(path)


def is_folder(path: str) -> bool:
    """Returns whether there is a folder."""
    filesystem, root = _open_filesystem(path)
    return filesystem.isdir(root)


def is_pattern(path: str) -> bool:
    """Returns whether a path has `*`, `?` or `[…]`, and nothing has it as its name."""
    return glob.has_magic(path) and not (is_file(path) or is_folder(path))


def glob_files(pattern: str) -> list[str]:
    """Returns the sorted paths of the files that a pattern with `*`, `?`, `[…]` or `**` stands for.

    Names of folders that are there are no patterns, whatever characters they have.
    """
    filesystem, _ = _open_filesystem(pattern)
    parts = pattern.split("/")
    for i, part in enumerate(parts):
        if glob.has_magic(part):
            if not is_folder("/".join(pattern.split("/")[: i + 1])):
                break
            parts[i] = glob.escape(part)
    found = filesystem.glob("/".join(parts), detail=True)
    names = [name for name, entry in found.items() if entry["type"] == "file"]
    return sorted(_BUCKET_PREFIX + name if is_remote(pattern) else name for name in names)


def write_file(path: str, data: bytes) -> None:
    """Writes a file atomically: a concurrent reader gets the old contents or the new ones. Raises OSError."""
    if is_remote(path):
        _open_filesystem(path)[0].pipe_file(path, data)
        return
    with replacing(Path(path)) as file:
        file.write(data)


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
