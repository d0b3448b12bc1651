"""Captions and other columns of a folder's images, from `metadata.jsonl`, `metadata.csv` or `metadata.parquet`.

A row has the column `file_name`, a path relative to the folder of the metadata file; a caption column, whose name is
configured; and any other columns. A caption cell is a string, or in JSON and Parquet also a list of strings. The
captions of several rows for one image are joined.
"""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from imagen_jax.errors import ConfigError, require

METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_FILE_NAME = "file_name"


class Row(NamedTuple):
    """The metadata of one image: its captions and its other columns."""

    captions: tuple[str, ...]
    columns: Mapping[str, str]


EMPTY_ROW = Row((), {})


def read_rows(data: bytes, path: str, caption_column: str) -> dict[str, Row]:
    """Returns the rows of a metadata file by `file_name`.

    Args:
        data: contents of the file.
        path: path of the file; its suffix determines the format.
        caption_column: name of the caption column.

    Raises:
        ConfigError: the file cannot be read, lacks a column, or names a file outside its folder; or pyarrow, which
            reads Parquet, is not installed.
    """
    read_format = {".jsonl": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}[posixpath.splitext(path)[1]]
    rows: dict[str, Row] = {}
    columns: set[str] = set()
    number = 1
    try:
        for cells in read_format(data):
            columns.update(cells)
            name = _relative_path(cells.get(_FILE_NAME))
            others = {column: str(value) for column, value in cells.items() if value is not None}
            others.pop(_FILE_NAME)
            others.pop(caption_column, None)
            known = rows.get(name, EMPTY_ROW)
            rows[name] = Row(known.captions + _parse_captions(cells.get(caption_column)), {**known.columns, **others})
            number += 1
    except Exception as error:  # each format's reader raises errors of its own
        raise ConfigError(f"{path} cannot be read, at row {number}: {' '.join(str(error).split())}") from error
    if rows and caption_column not in columns:
        raise ConfigError(
            f"{path} has no column {caption_column!r}, but {', '.join(sorted(columns))}: set config.data.caption_column"
        )
    return rows


def _json_rows(data: bytes) -> Iterator[Mapping[str, Any]]:
    """Yields the object on each line; empty lines are skipped."""
    for line in data.decode("utf-8-sig").split("\n"):  # not splitlines: strings may contain other line separators
        if line.strip():
            cells = json.loads(line)
            if not isinstance(cells, dict):
                raise ValueError(f"{line[:50]!r} is not an object")
            yield cells


def _csv_rows(data: bytes) -> Iterator[Mapping[str, Any]]:
    """Yields the rows below the header."""
    for cells in csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True):
        if None in cells:
            raise ValueError("it has more cells than there are columns")
        yield cells


def _parquet_rows(data: bytes) -> Iterator[Mapping[str, Any]]:
    """Yields the rows, read in batches."""
    parquet = require("pyarrow.parquet", "data")
    for batch in parquet.ParquetFile(io.BytesIO(data)).iter_batches():
        yield from batch.to_pylist()


def _relative_path(name: Any) -> str:
    """Returns the normalized path of a row's image. Raises ValueError if it is outside the folder."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"its {_FILE_NAME} is {name!r}: expected a path")
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        raise ValueError(f"its {_FILE_NAME} {name!r} is not a path") from error
    path = posixpath.normpath(name)
    if path.startswith(("/", "../")) or path in (".", "..") or "\0" in path:
        raise ValueError(f"its {_FILE_NAME} {name!r} is outside of the folder")
    return path


def _parse_captions(cell: Any) -> tuple[str, ...]:
    """Returns the captions in a cell, a string or a list of strings, without blank ones."""
    texts = cell if isinstance(cell, list) else [] if cell is None else [cell]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"its caption {text!r} is not a string")
    return tuple(text.strip() for text in texts if text.strip())
