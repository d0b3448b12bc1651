"""Parquet files with images, as data sets on the Hugging Face Hub have them, with random access.

The splits are those that files or their folders are named after: `data/train-00000-of-00003.parquet`, `test/0.parquet`.
The rows of each file are copied once to a local disk (see `row_copy.py`); a file that changes is copied again.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import operator
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from tqdm import tqdm

from imagen_jax.data.captions import clean_captions
from imagen_jax.data.left_out import LeftOut
from imagen_jax.data.record import CorruptRecordError, Record
from imagen_jax.datasets import parquet_files
from imagen_jax.datasets.row_copy import RowCopy, remove_unfinished, write_rows
from imagen_jax.errors import ConfigError, is_out_of_space
from imagen_jax.io import storage

logger = logging.getLogger(__name__)

_THREADS = 8  # that read what files are
_ALL, _VALIDATION = "all", "validation"


class ParquetColumns(NamedTuple):
    """The columns to read: of images, and of captions, "" for none."""

    image: str
    caption: str


class ParquetSource:
    """The rows of Parquet files, in order, with random access.

    Args:
        path: a file, a folder, or a pattern such as `DIR/data/*.parquet`; local, or `gs://`.
        split: "train", "validation", "test" or another split that files are named after, or "all". Without files for
            validation, a fraction of the rows for training is used.
        columns: the columns to read.
        validation_fraction: this fraction, in [0, 1].
        cache_dir: the folder for the copies.

    Attributes:
        files: the files of the split.
        left_out: the files and columns that are not used.

    Raises:
        ConfigError: there are no files of the split, or no rows; one cannot be read, or lacks a column; or there is
            no space for the copies.
    """

    def __init__(
        self, path: str, split: str, columns: ParquetColumns, validation_fraction: float, cache_dir: str
    ) -> None:
        if not path:
            raise ConfigError("config.data.path is empty: give your Parquet files, --config.data.path=DIR")
        if storage.is_remote(cache_dir):
            raise ConfigError(f"config.data.cache_dir {cache_dir!r} is in a bucket: give a folder on a local disk")
        self._path, self._split, self._columns = path, split, columns
        self.left_out = LeftOut()
        files = parquet_files.list_files(os.path.expanduser(path), os.path.expanduser(cache_dir), self.left_out)
        fraction_of = ""
        if split != _ALL:
            files, fraction_of = parquet_files.files_of_split(files, path, split, self.left_out)
        self.files = list(files.values())
        self._copies = _load_copies(self.files, columns, Path(cache_dir).expanduser(), self.left_out)
        self._starts = np.cumsum([0, *map(len, self._copies)])  # of each file's rows, and the number of all
        self._rows = np.arange(self._starts[-1])
        if fraction_of and len(self._rows) == 1 and 0 < validation_fraction < 1:
            reason = "there are no others: validation shows nothing that training has not seen"
            self.left_out.add(path, "row(s) trained on and validated on", reason, (), 1)
        elif fraction_of:
            drawn = _draw_rows(list(files), [len(copy) for copy in self._copies], validation_fraction)
            self._rows = np.flatnonzero(drawn == (fraction_of == _VALIDATION))
            logger.info(
                "%s has no files for validation: %d of its %d rows are %s", path, len(self._rows), len(drawn), split
            )
        if not len(self._rows):
            reason = (
                f"config.data.validation_fraction is {validation_fraction}" if fraction_of else "its files are empty"
            )
            raise ConfigError(f"the {split} split of {path} has none of its {self._starts[-1]} rows: {reason}")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: SupportsIndex) -> Record:
        copy, row, name = self._locate(index)
        image, description = _checked(name, lambda: copy.read(row))
        if image is None or description["error"]:
            raise CorruptRecordError(name, description["error"] or "has no image")
        return Record(image, self._captions(description), name, self._other_columns(description))

    def captions(self, index: SupportsIndex) -> tuple[str, ...]:
        """Returns the captions of record `index` without reading its image."""
        return self._captions(self._describe(index))

    def columns(self, index: SupportsIndex) -> Mapping[str, str]:
        """Returns the columns of record `index` without reading its image."""
        return self._other_columns(self._describe(index))

    def _describe(self, index: SupportsIndex) -> dict[str, Any]:
        copy, row, name = self._locate(index)
        return _checked(name, lambda: copy.description(row))

    def _locate(self, index: SupportsIndex) -> tuple[RowCopy, int, str]:
        """Returns (copy, row in it, name) of record `index`."""
        i = operator.index(index)
        if not 0 <= i < len(self):
            raise IndexError(f"index {i} is outside [0, {len(self)}) of {self!r}")
        row = int(self._rows[i])
        file = int(np.searchsorted(self._starts, row, side="right")) - 1
        row -= int(self._starts[file])
        return self._copies[file], row, f"{self.files[file]} row {row}"

    def _captions(self, description: dict[str, Any]) -> tuple[str, ...]:
        cell = description["texts"].get(self._columns.caption, [])
        texts = cell if isinstance(cell, list) else [str(cell)]
        return clean_captions(text for text in texts if text)

    def _other_columns(self, description: dict[str, Any]) -> dict[str, str]:
        cells = description["texts"].items()
        return {name: str(v) for name, v in cells if name != self._columns.caption and not isinstance(v, list)}

    def __repr__(self) -> str:
        return f"ParquetSource({self._path!r}, split={self._split!r})"


def _checked(name: str, read: Any) -> Any:
    try:
        return read()
    except (FileNotFoundError, ValueError) as error:  # other errors of disks may be temporary: they end the run
        raise CorruptRecordError(name, f"cannot be read: {error}; start again to copy its file once more") from error


def _draw_rows(names: list[str], counts: list[int], fraction: float) -> np.ndarray:
    """Returns which rows are for validation, bool [sum of counts]: a function of a file's name and of the row.

    One is, and one is not, however few there are; all or none with a fraction of 1 or 0.
    """
    seeds = [
        int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest())
        for name in names
    ]
    draws = [np.random.default_rng(seed).random(count) for seed, count in zip(seeds, counts, strict=True)]
    values = np.concatenate(draws)
    drawn = values < fraction
    if 0 < fraction < 1 and len(values) > 1:
        drawn[np.argmin(values)], drawn[np.argmax(values)] = True, False
    return drawn


# copies


def _load_copies(files: list[str], columns: ParquetColumns, cache: Path, left_out: LeftOut) -> list[RowCopy]:
    """Returns the copies of files, made where there is none of this version of a file."""
    with ThreadPoolExecutor(_THREADS) as pool:
        places = list(pool.map(lambda file: _copy_path(file, columns, cache), files))
        contents = list(pool.map(lambda file: _contents_of(file, columns), files))
    unused = dict.fromkeys(name for content in contents for name in content.unused_columns)
    left_out.add(files[0], "column(s) not read", "they hold neither text nor numbers", unused)
    copies = [_open_copy(place) for place in places]
    needed = sum(content.size for content, copy in zip(contents, copies, strict=True) if copy is None)
    missing = copies.count(None)
    if missing:
        _check_space(needed, missing, cache)
        logger.info("copying the rows of %d Parquet file(s) to %s, once", missing, cache)
    work = tqdm(files, desc="Parquet files", delay=2.0, mininterval=1.0, leave=False)
    return [
        _make_copy(file, place, columns) if copy is None else copy
        for file, place, copy in zip(work, places, copies, strict=True)
    ]


def _copy_path(file: str, columns: ParquetColumns, cache: Path) -> Path:
    """Returns where the copy of a file is: in a folder for the file, named after the file's version."""
    try:
        version = storage.file_version(file)
    except OSError as error:
        raise parquet_files.unreadable_error(file, error) from error
    full_path = file if storage.is_remote(file) else os.path.realpath(file)
    of_file, of_version = (
        hashlib.sha256(os.fsencode(text)).hexdigest()[:32] for text in (full_path, repr((*version, columns.image)))
    )
    return cache / of_file / f"{of_version}.rows"


def _open_copy(place: Path) -> RowCopy | None:
    try:
        return RowCopy(place)
    except (OSError, ValueError):
        return None


def _make_copy(file: str, place: Path, columns: ParquetColumns) -> RowCopy:
    """Copies the rows of a file, once for all processes of a machine.

    Raises:
        ConfigError: the file cannot be read, or the copy not be written.
    """
    try:
        with _locked(place.parent):
            copy = _open_copy(place)
            if copy is not None:  # made by another process meanwhile
                return copy
            for old in place.parent.glob("*.rows"):
                old.unlink()
                remove_unfinished(old)
            remove_unfinished(place)
            source = parquet_files.open_file(file)
            layout = parquet_files.read_layout(source.schema_arrow, file, *columns)
            write_rows(place, _named_errors(file, parquet_files.iter_rows(source, layout)))
            return RowCopy(place)
    except OSError as error:
        reason = "the disk is full" if is_out_of_space(error) else error.strerror or error
        raise ConfigError(
            f"{file} cannot be copied to {place.parent} ({reason}): set config.data.cache_dir to a folder with space"
        ) from error


def _named_errors(file: str, rows: Iterator[Any]) -> Iterator[Any]:
    """Yields rows; errors of reading them name the file."""
    try:
        yield from rows
    except ConfigError:
        raise
    except Exception as error:  # readers of Parquet raise errors of many kinds
        raise parquet_files.unreadable_error(file, error) from error


class _Contents(NamedTuple):
    """What a file has: about how many bytes a copy takes, and names of columns that are not copied."""

    size: int
    unused_columns: tuple[str, ...]


def _contents_of(file: str, columns: ParquetColumns) -> _Contents:
    """Returns what a file has. Raises ConfigError if it lacks a column."""
    source = parquet_files.open_file(file)
    layout = parquet_files.read_layout(source.schema_arrow, file, *columns)
    return _Contents(parquet_files.uncompressed_bytes(source.metadata, layout), layout.unused)


def _check_space(needed: int, count: int, cache: Path) -> None:
    """Raises ConfigError if the copies of files do not fit on the disk of the cache."""
    folder = cache.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"the rows of {count} Parquet file(s) take {needed:,} bytes, and {cache} has {free:,} free: set "
            "config.data.cache_dir to a folder on a disk with space"
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Creates a folder, and waits until no other process has it; a claim ends with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
