"""Captions and other columns of a folder's images, from ``metadata.jsonl``, ``metadata.csv`` or ``metadata.parquet``.

A row has the column ``file_name``, a path from the folder of the metadata file; one of captions, whose name is the
caller's; and any others. A caption is a string, or in JSON and Parquet a list of them; rows of one file add theirs.
"""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from imagen_jax.errors import ConfigError

FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
FILE_NAME = "file_name"


class Row(NamedTuple):
    """What metadata say of one image."""

    captions: tuple[str, ...]
    columns: Mapping[str, str]


NO_ROW = Row((), {})


def read_rows(data: bytes, path: str, caption_column: str) -> dict[str, Row]:
    """The rows of a metadata file by ``file_name``.

    Args:
        data: its bytes.
        path: of the file; its ending says what it is.
        caption_column: the name of the column of captions.

    Raises:
        UsageError: it cannot be read, lacks a column, or names a file outside its folder.
    """
    read = {".jsonl": json_rows, ".csv": csv_rows, ".parquet": parquet_rows}[posixpath.splitext(path)[1]]
    rows: dict[str, Row] = {}
    columns: set[str] = set()
    number = 1
    try:
        for cells in read(data):
            columns.update(cells)
            name = inside(cells.get(FILE_NAME))
            others = {column: str(value) for column, value in cells.items() if value is not None}
            others.pop(FILE_NAME)
            others.pop(caption_column, None)
            before = rows.get(name, NO_ROW)
            rows[name] = Row(before.captions + captions_of(cells.get(caption_column)), {**before.columns, **others})
            number += 1
    except Exception as error:  # each reader raises its own
        raise ConfigError(f"{path} cannot be read, at row {number}: {' '.join(str(error).split())}") from error
    if rows and caption_column not in columns:
        raise ConfigError(
            f"{path} has no column {caption_column!r}, but {', '.join(sorted(columns))}: set config.data.caption_column"
        )
    return rows


def json_rows(data: bytes) -> Iterator[Mapping[str, Any]]:
    """An object a line; empty lines are skipped."""
    for line in data.decode("utf-8-sig").split("\n"):  # strings may have other ends of lines in them
        if line.strip():
            cells = json.loads(line)
            if not isinstance(cells, dict):
                raise ValueError(f"{line[:50]!r} is not an object")
            yield cells


def csv_rows(data: bytes) -> Iterator[Mapping[str, Any]]:
    """Rows below one of names."""
    for cells in csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True):
        if None in cells:
            raise ValueError("it has more cells than there are columns")
        yield cells


def parquet_rows(data: bytes) -> Iterator[Mapping[str, Any]]:
    """Rows, read in batches."""
    from pyarrow import parquet  # takes a second to import, and only few folders need it

    for batch in parquet.ParquetFile(io.BytesIO(data)).iter_batches():
        yield from batch.to_pylist()


def inside(name: Any) -> str:
    """A row's path to its image, in its shortest form. Raises ValueError if it leads out of the folder."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"its {FILE_NAME} is {name!r}: expected a path")
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        raise ValueError(f"its {FILE_NAME} {name!r} is no path") from error
    path = posixpath.normpath(name)
    if path.startswith(("/", "../")) or path in (".", "..") or "\0" in path:
        raise ValueError(f"its {FILE_NAME} {name!r} is outside of the folder")
    return path


def captions_of(cell: Any) -> tuple[str, ...]:
    """The captions in a cell: one, or those of a list; blank ones are none."""
    texts = cell if isinstance(cell, list) else [] if cell is None else [cell]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"its caption {text!r} is not a string")
    return tuple(text.strip() for text in texts if text.strip())
