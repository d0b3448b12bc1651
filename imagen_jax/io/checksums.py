"""Checksums of a folder's files, in a manifest that `sha256sum --check` can read.

Damage to the manifest itself is detected: an altered name refers to a missing file and leaves another one unlisted.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from imagen_jax.io.atomic import sha256_file
from imagen_jax.io.bucket import BucketError
from imagen_jax.io.paths import bucket_path, file_sizes

MANIFEST = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
# hashing releases the GIL, so that files are hashed in parallel
_THREADS = min(8, os.cpu_count() or 1)


def list_files(folder: Path) -> list[str]:
    """Returns the sorted paths of a folder's files, relative to it, without manifests."""
    return sorted(_sizes(folder))


def _sizes(folder: Path) -> dict[str, int]:
    return {name: size for name, size in file_sizes(folder).items() if not name.startswith(MANIFEST)}


def _checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Returns the SHA-256 of a folder's files by name, in hexadecimal; for unreadable files, the error."""

    def checksum(name: str) -> str:
        try:
            return sha256_file(folder / name)
        except BucketError:
            raise  # it does not answer, which is no damage
        except OSError as error:
            return str(error.strerror)

    names = list(names)
    with ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(names, threads.map(checksum, names), strict=True))


def _write_sums(file: Path, sums: dict[str, str]) -> None:
    """Writes checksums to a file and syncs it to disk."""
    if bucket_path(file) is not None:
        file.write_bytes("".join(f"{checksum}  {name}\n" for name, checksum in sums.items()).encode())
        return
    with file.open("w") as stream:
        stream.writelines(f"{checksum}  {name}\n" for name, checksum in sums.items())
        stream.flush()
        os.fsync(stream.fileno())


def write_shard(folder: Path, shard: int, names: Iterable[str]) -> None:
    """Writes the checksums of some of a folder's files; `merge_shards` makes the manifest. Raises OSError."""
    _write_sums(folder / f"{MANIFEST}.{shard}", _checksums(folder, names))


def merge_shards(folder: Path, count: int) -> None:
    """Merges the checksums of `count` shards into the manifest. Raises OSError."""
    shards = [folder / f"{MANIFEST}.{shard}" for shard in range(count)]
    sums: dict[str, str] = {}
    for shard in shards:
        sums |= _read_sums(shard)
    _write_sums(folder / MANIFEST, sums)
    for shard in shards:
        shard.unlink()


def _read_sums(file: Path) -> dict[str, str]:
    """Returns the checksums of a manifest by file name.

    Raises:
        ValueError: a line is malformed.
        OSError: the file cannot be read.
    """
    return _parse_sums(file.read_bytes(), file.name)


def listed(folder: Path) -> list[str]:
    """Returns the files that a folder's manifest lists. Raises OSError, and ValueError for a malformed line."""
    return list(_read_sums(folder / MANIFEST))


def _parse_sums(data: bytes, name: str = MANIFEST) -> dict[str, str]:
    sums = {}
    for number, line in enumerate(data.decode().split("\n")[:-1], 1):
        match = _LINE.fullmatch(line)
        if not match:
            raise ValueError(f"line {number} of {name} is malformed")
        sums[match[2]] = match[1]
    return sums


def top_level_checksum(manifest: bytes) -> str:
    """Returns the SHA-256 of a JSON object with those of the files directly in a folder, by the folder's manifest."""
    sums = {name: checksum for name, checksum in _parse_sums(manifest).items() if "/" not in name}
    sums[MANIFEST] = hashlib.sha256(manifest).hexdigest()
    return json_digest(sums)


def json_digest(value: Any) -> str:
    """Returns the SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_verified(folder: Path, name: str) -> bytes | None:
    """Returns the content of a file of a folder with a manifest; None if it, or the manifest, is damaged or missing.

    Raises BucketError.
    """
    try:
        data = (folder / name).read_bytes()
        expected = _read_sums(folder / MANIFEST).get(name)
    except BucketError:
        raise
    except (OSError, ValueError):
        return None
    return data if hashlib.sha256(data).hexdigest() == expected else None


def verify(
    folder: Path, included: Callable[[str], bool], shard: int = 0, num_shards: int = 1, manifest: bytes | None = None
) -> list[str]:
    """Checks files of a folder against its manifest.

    Args:
        folder: a folder with a manifest.
        included: whether to check a file, by its path in the folder.
        shard: the shard of the work to do; each file is read in one shard.
        num_shards: number of shards.
        manifest: the content of the manifest, from elsewhere; None to read that in the folder.

    Returns:
        A message for each file that is missing, unlisted or different, and for a damaged manifest.
    """
    try:
        listed = _read_sums(folder / MANIFEST) if manifest is None else _parse_sums(manifest)
        sums = {name: checksum for name, checksum in listed.items() if included(name)}
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except BucketError:
        raise
    except (ValueError, OSError) as error:
        return [f"{MANIFEST} is damaged ({error})"]
    try:
        sizes = {name: size for name, size in _sizes(folder).items() if included(name)}
    except BucketError:
        raise
    except OSError as error:  # as when the folder is deleted meanwhile
        return [f"{folder.name} cannot be listed ({error.strerror})"]
    missing = [f"{name} is missing" for name in sorted(sums.keys() - sizes.keys())]
    unlisted = [f"{name} is not in {MANIFEST}" for name in sorted(sizes.keys() - sums.keys())]
    by_size = sorted(sums.keys() & sizes.keys(), key=lambda name: (sizes[name], name))
    actual = _checksums(folder, by_size[shard::num_shards])
    different = [
        f"{name} differs from its checksum in {MANIFEST}"
        for name, value in sorted(actual.items())
        if value != sums[name]
    ]
    return missing + unlisted + different
