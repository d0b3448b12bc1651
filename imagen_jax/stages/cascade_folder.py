"""Where a cascade is written: a folder that is checked first, filled beside its place, and completed by its index."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from imagen_jax.errors import ConfigError
from imagen_jax.io import checksums
from imagen_jax.io.atomic import read_json, write_json
from imagen_jax.io.paths import bucket_path, check_writable
from imagen_jax.io.version import VERSION
from imagen_jax.stages.published import (
    CLASS_NAME,
    FORMAT,
    INDEX,
    CascadeIndex,
    SafetyCheckerEntry,
    StageEntry,
    is_published,
)

_BLOCK = 2**24  # bytes read at once

logger = logging.getLogger(__name__)


def check_out(folder: Path, overwrite: bool, sources: Sequence[Path] = ()) -> None:
    """Checks that a cascade can be written to a folder, before anything is computed for it.

    Args:
        folder: to write to.
        overwrite: whether a cascade that is there is replaced.
        sources: the folders that it is made from.

    Raises:
        ConfigError: it is not writable, has files that are not those of a published cascade, or a cascade that is not
            to be replaced, or one of the sources.
    """
    what = f"--out {str(folder)!r}"
    is_used = check_new(folder, sources)
    if is_used and not _is_cascade(folder):
        raise ConfigError(f"{what} has files that are not those of a published cascade: give a new folder")
    if is_used and not overwrite:
        raise ConfigError(f"{what} has a published cascade: give a new folder, or --overwrite to replace it")


def check_new(folder: Path, sources: Sequence[Path] = ()) -> bool:
    """Returns whether a folder that is to be written has files already.

    Raises ConfigError if it has no name, is a file, is not writable, or has one of the sources in it.
    """
    what = f"--out {str(folder)!r}"
    if not folder.name or folder.name == "..":
        raise ConfigError(f"{what} has no name of its own: give a new folder, such as runs/cascade")
    try:
        check_writable(folder.parent)
        if folder.is_file():
            raise ConfigError(f"{what} is a file: give a new folder")
        is_used = folder.is_dir() and any(True for _ in folder.iterdir())
    except OSError as error:
        raise ConfigError(f"{what} cannot be written ({error.strerror}): give another folder") from error
    if any(source.absolute().is_relative_to(folder.absolute()) for source in sources):
        raise ConfigError(f"{what} is where the stages are loaded from: give a new folder")
    return is_used


def _is_cascade(folder: Path) -> bool:
    """Returns whether a folder has a published cascade, perhaps a damaged one; diffusers has indices of that name."""
    if not is_published(folder) or (folder / checksums.MANIFEST).is_file():
        return is_published(folder)
    try:
        return read_json(folder / INDEX)["_class_name"] == CLASS_NAME
    except (OSError, ValueError, KeyError, TypeError):
        return False


def unfinished_folder(folder: Path) -> Path:
    """Returns a new folder to write in what becomes `folder`: beside its place, or on a local disk for a bucket."""
    if bucket_path(folder) is not None:
        return Path(tempfile.mkdtemp(prefix="imagen_jax-"))
    parent = folder.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    for leftover in parent.glob(f".{folder.name}.unfinished-*"):
        logger.warning("%s was left by a command that did not finish, if none is running: delete it", leftover)
    return Path(tempfile.mkdtemp(prefix=f".{folder.name}.unfinished-", dir=parent))


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields the `unfinished_folder` of a folder, which is deleted at the end, unless it was put in its place.

    Errors of the operating system that name no file, as that of a full disk, name the folder.
    """
    temporary = unfinished_folder(folder)
    try:
        yield temporary
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(folder)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_index(
    folder: Path, name: str, stages: list[StageEntry], safety_checker: SafetyCheckerEntry | None = None
) -> None:
    """Writes a cascade's index, and the checksums of all files, which complete the folder. Raises OSError."""
    index = CascadeIndex(
        _class_name="ImagenPipeline",
        _imagen_jax_version=VERSION,
        format=FORMAT,
        name=name,
        stages=stages,
        safety_checker=safety_checker,
    )
    write_json(folder / INDEX, index.to_json())
    checksums.write_shard(folder, 0, checksums.list_files(folder))
    checksums.merge_shards(folder, 1)


def weights_checksum(folder: Path) -> str:
    """Returns what identifies weights that are of no checkpoint: the SHA-256 of their files, one after another."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()
