"""Paths of folders and files, on disks or in a bucket.

`as_path` is the one place where a name becomes a path. What it returns for `gs://` behaves as `pathlib.Path` does in
the methods of `BucketPath`, so that the other rooms need not know where a folder is.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import cast

from imagen_jax.io.bucket import BucketPath, is_bucket

# Google's libraries would ask the bucket for its kind through an interface that emulators and old accounts lack.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


def as_path(path: str | os.PathLike[str]) -> Path:
    """Returns the path of a name: a local one with `~` expanded, or `gs://BUCKET/…`."""
    if isinstance(path, BucketPath):
        return cast(Path, path)
    return cast(Path, BucketPath(os.fspath(path))) if is_bucket(path) else Path(path).expanduser()


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
