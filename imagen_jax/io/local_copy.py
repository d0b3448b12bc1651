"""Copies of files in a bucket on a local disk, for libraries that read from disks only.

They are in CACHE, each version of a file or folder in a folder of its own, and are made once.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

from imagen_jax.io.atomic import replacing
from imagen_jax.io.bucket import BucketPath
from imagen_jax.io.paths import bucket_path

CACHE = "~/.cache/imagen_jax/buckets"
_THREADS = 8


def local_folder(folder: Path, included: Callable[[str], bool] = lambda name: True) -> Path:
    """Returns a folder with the same files on a local disk: itself, or a copy of one in a bucket.

    Args:
        folder: the folder.
        included: whether a file is needed, by its path in the folder; of a bucket, no others are copied.

    Raises:
        OSError: a file cannot be read, or the copy cannot be written.
    """
    path = bucket_path(folder)
    return folder if path is None else _copy(path, path.generations(), included)


def local_file(file: Path) -> Path:
    """Returns a file with the same content on a local disk: itself, or a copy of one in a bucket. Raises OSError."""
    path = bucket_path(file)
    if path is None:
        return file
    return _copy(path.parent, {path.name: path.stat().generation}) / path.name


def _copy(folder: BucketPath, generations: dict[str, int], included: Callable[[str], bool] = lambda name: True) -> Path:
    """Copies files of a folder, named by paths relative to it; complete ones are kept."""
    version = hashlib.sha256(repr((str(folder), sorted(generations.items()))).encode()).hexdigest()[:32]
    copy = Path(CACHE).expanduser() / version

    def copy_missing(name: str) -> None:
        if not (copy / name).exists():
            copy_file(cast(Path, folder / name), copy / name)

    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(copy_missing, filter(included, generations)))
    return copy


def copy_file(file: Path, target: Path) -> None:
    """Copies a file to a path on a local disk, atomically, and creates its folder. Raises OSError."""
    bucket = bucket_path(file)
    with replacing(target) as temporary:
        if bucket is not None:
            bucket.download(temporary)
        else:
            with file.open("rb") as source:
                shutil.copyfileobj(source, temporary)
