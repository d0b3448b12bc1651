"""Paths of folders and files, on disks or in a bucket.

`as_path` is the one place where a name becomes a path, and `expand_user` the one where `~` becomes a home folder. What
`as_path` returns for `gs://` behaves as `pathlib.Path` does in the methods of `BucketPath`, so that the other rooms
need not know where a folder is.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import cast

import fsspec

from imagen_jax.errors import ConfigError
from imagen_jax.io.bucket import BucketPath, is_bucket

# Google's libraries would ask the bucket for its kind through an interface that emulators and old accounts lack.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


def expand_user(name: str | os.PathLike[str]) -> str:
    """Returns a name with a leading `~` or `~USER` replaced by that home folder; any other name is returned as it is.

    Shells expand `~` at the start of a word, but not in `--workdir=~/runs`. `./~` is a folder that has this name.

    Raises:
        ConfigError: there is no such user on this machine.
    """
    text = os.fspath(name)
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):  # it is left as it is where there is no such home folder
        user = text[1:].partition("/")[0]
        whose = f"the user {user!r}" if user else "this user"
        raise ConfigError(
            f"{text!r} is in the home folder of {whose}, which this machine does not know: give the full path, or "
            f"{'./' + text!r} for a folder of that name"
        )
    return expanded


def as_path(path: str | os.PathLike[str]) -> Path:
    """Returns the path of a name: a local one with `~` expanded, or `gs://BUCKET/…`.

    Raises:
        ConfigError: as `expand_user`.
    """
    if isinstance(path, BucketPath):
        return cast(Path, path)
    if is_bucket(path):
        return cast(Path, BucketPath(os.fspath(path)))
    local = Path(expand_user(path))
    # Path("./~") equals Path("~"): made absolute, it is not expanded by whoever gets it next
    return local.absolute() if str(local).startswith("~") else local


def bucket_path(path: Path) -> BucketPath | None:
    """Returns a path as that of a bucket; None if it is on a disk."""
    return path if isinstance(path, BucketPath) else None


def file_sizes(folder: Path) -> dict[str, int]:
    """Returns the sizes of the files in a folder and below, by path relative to it."""
    bucket = bucket_path(folder)
    if bucket is not None:
        return bucket.tree()
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    # a link counts as what it points to; a dead one too is a file
    return {path.relative_to(folder).as_posix(): path.stat(follow_symlinks=path.exists()).st_size for path in files}


def remove_tree(folder: Path, ignore_errors: bool = False) -> None:
    """Deletes a folder and all that is in it. Raises OSError."""
    bucket = bucket_path(folder)
    try:
        if bucket is not None:
            bucket.rmtree()
        else:
            shutil.rmtree(folder)
    except OSError:
        if not ignore_errors:
            raise


def forget_listings() -> None:
    """Lets fsspec, by which Orbax sees buckets, list folders again: it keeps what it has seen."""
    filesystem = fsspec.get_filesystem_class("gs")
    for instance in list(filesystem._cache.values()):  # one for each thread and set of options
        instance.invalidate_cache()


def check_writable(folder: Path) -> None:
    """Raises OSError if a folder, or where it would be created, is not writable; leaves nothing behind."""
    bucket = bucket_path(folder)
    if bucket is not None:
        return bucket.check_access()
    where = folder.absolute()
    while not (where.exists() or where.is_symlink()):
        where = where.parent
    with tempfile.TemporaryFile(dir=where):
        pass
