"""Checksums of a folder's files, in a file of it that ``sha256sum --check`` reads too.

Every byte of that file counts: a name in it that was altered is of no file, and leaves a file that is not listed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from imagen_jax.io.atomic import file_hash

MANIFEST = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64})  (.+)")
# hashing lets go of Python's lock, so that files are read and hashed beside each other
THREADS = min(8, os.cpu_count() or 1)


def files_below(folder: Path) -> list[str]:
    """The paths of a folder's files, relative to it, in order; the manifest is none of them."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in found if not name.startswith(MANIFEST))


def checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of files of a folder, in hexadecimal digits; of a file that cannot be read, why not."""

    def checksum(name: str) -> str:
        try:
            return file_hash(folder / name)
        except OSError as error:
            return str(error.strerror)

    names = list(names)
    with ThreadPoolExecutor(THREADS) as threads:
        return dict(zip(names, threads.map(checksum, names), strict=True))


def write_sums(file: Path, sums: dict[str, str]) -> None:
    """Writes checksums to a file, and makes sure that they are on the disk."""
    with file.open("w") as opened:
        opened.writelines(f"{sum_}  {name}\n" for name, sum_ in sums.items())
        opened.flush()
        os.fsync(opened.fileno())


def write_share(folder: Path, share: int, names: Iterable[str]) -> None:
    """Writes the checksums of some of a folder's files; ``join_shares`` makes the manifest of all shares."""
    write_sums(folder / f"{MANIFEST}.{share}", checksums(folder, names))


def join_shares(folder: Path, count: int) -> None:
    """Makes the manifest of the checksums that were written in ``count`` shares."""
    shares = [folder / f"{MANIFEST}.{share}" for share in range(count)]
    write_sums(folder / MANIFEST, {name: sum_ for share in shares for name, sum_ in read_sums(share).items()})
    for share in shares:
        share.unlink()


def read_sums(file: Path) -> dict[str, str]:
    """File names → checksums of a manifest.

    Raises:
        ValueError: a line that is none of a manifest's.
        OSError: it cannot be read.
    """
    sums = {}
    for number, line in enumerate(file.read_text().split("\n")[:-1], 1):
        parts = LINE.fullmatch(line)
        if not parts:
            raise ValueError(f"line {number} of {file.name} is none of a manifest's")
        sums[parts[2]] = parts[1]
    return sums


def damage(folder: Path, wanted: Callable[[str], bool], share: int = 0, shares: int = 1) -> list[str]:
    """What is wrong with those files of a folder that are wanted: each file named, and how it differs. [] if nothing.

    Args:
        folder: with a manifest.
        wanted: of a file's path in the folder, whether it is checked.
        share: which part of the work to do, of ``shares``: every file is read in one of them.
    """
    try:
        sums = {name: sum_ for name, sum_ in read_sums(folder / MANIFEST).items() if wanted(name)}
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except (ValueError, OSError) as error:
        return [f"{MANIFEST} is damaged ({error})"]
    there = {name for name in files_below(folder) if wanted(name)}
    missing = [f"{name} is missing" for name in sorted(sums.keys() - there)]
    surplus = [f"{name} is not in {MANIFEST}" for name in sorted(there - sums.keys())]
    by_size = sorted(sums.keys() & there, key=lambda name: ((folder / name).stat().st_size, name))
    found = checksums(folder, by_size[share::shares])
    other = [f"{name} is not what was written" for name, sum_ in sorted(found.items()) if sum_ != sums[name]]
    return missing + surplus + other
