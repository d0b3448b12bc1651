"""Captions and other columns of a folder's images, from `metadata.jsonl`, `metadata.csv` or `metadata.parquet`.

A row has the column `file_name`, a path relative to the folder of the metadata file; a caption column, whose name is
configured; and any other columns. A caption cell is a string, or in JSON and Parquet also a list of strings. The
captions of several rows for one image are joined. `meta_cap.json` and its like, which the tools of kohya's sd-scripts
write, are read too.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from imagen_jax.data.captions import Repeated, clean_captions, join_repeated, json_captions, json_columns, parse_json
from imagen_jax.data.encodings import EncodingError, decode_text
from imagen_jax.errors import ConfigError, require

METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
# what sd-scripts writes, in the order of its steps: a later file has the captions of an earlier one, cleaned
KOHYA_FILES = ("meta_cap.json", "meta_cap_dd.json", "meta_clean.json", "meta_lat.json")
_KOHYA_CAPTIONS = ("caption", "tags")
_FILE_NAME = "file_name"
_DELIMITERS = ",;\t|"
_EXCEL_DELIMITER = re.compile(r"\s*sep=(.)\r?\n")  # a first line that Excel writes and reads


class Row(NamedTuple):
    """The metadata of one image: its captions and its other columns."""

    captions: tuple[str, ...]
    columns: Mapping[str, str]


EMPTY_ROW = Row((), {})


def is_metadata_file(name: str) -> bool:
    """Returns whether a path is that of a metadata file, in any case."""
    return posixpath.basename(name).lower() in (*METADATA_FILES, *KOHYA_FILES)


def reading_order(name: str) -> tuple[int, str, int, str]:
    """Returns a key that sorts metadata files: of those that describe an image, the last one counts."""
    file = posixpath.basename(name).lower()
    step = KOHYA_FILES.index(file) if file in KOHYA_FILES else len(KOHYA_FILES)
    return name.count("/"), posixpath.dirname(name), step, name


def read_rows(data: bytes, path: str, caption_column: str) -> dict[str, Row]:
    """Returns the rows of a metadata file by `file_name`, which may be an absolute path.

    Args:
        data: contents of the file.
        path: path of the file; its suffix determines the format.
        caption_column: name of the caption column.

    Raises:
        ConfigError: the file cannot be read, lacks a column, or names a file outside its folder; or pyarrow, which
            reads Parquet, is not installed.
    """
    if posixpath.basename(path).lower() in KOHYA_FILES:
        return _kohya_rows(data, path, caption_column)
    suffix = posixpath.splitext(path)[1].lower()
    read_format = {".jsonl": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}[suffix]
    rows: dict[str, Row] = {}
    columns: set[str] = set()
    number = 1
    try:
        for cells in read_format(data):
            columns.update(cells)
            name = _path_in_row(cells.get(_FILE_NAME))
            others = {column: str(value) for column, value in cells.items() if value is not None}
            others.pop(_FILE_NAME)
            others.pop(caption_column, None)
            _add_row(rows, name, _parse_captions(cells.get(caption_column)), others)
            number += 1
    except EncodingError as error:
        raise ConfigError(f"{path} {error}") from error
    except Exception as error:  # each format's reader raises errors of its own
        raise ConfigError(f"{path} cannot be read, at row {number}: {' '.join(str(error).split())}") from error
    if rows and caption_column not in columns:
        raise ConfigError(
            f"{path} has no column {caption_column!r}, but {', '.join(sorted(columns))}: set config.data.caption_column"
        )
    return rows


def _add_row(rows: dict[str, Row], name: str, captions: tuple[str, ...], columns: Mapping[str, str]) -> None:
    """Adds a row of an image, whose captions follow those of its other rows."""
    known = rows.get(name, EMPTY_ROW)
    rows[name] = Row(known.captions + captions, {**known.columns, **columns})


def _kohya_rows(data: bytes, path: str, caption_column: str) -> dict[str, Row]:
    """Returns the rows of a file of sd-scripts: an object for each image, with `caption`, `tags` or both.

    The images are named with or without suffix, by absolute paths or relative ones.
    """
    rows: dict[str, Row] = {}
    try:
        tree = parse_json(data)
        if not isinstance(tree, dict):
            raise ValueError(f"it is a {type(tree).__name__}, expected an object for each image")
        for name, value in tree.items():
            for cells in value if isinstance(value, Repeated) else [value]:
                captions = json_captions(cells, (caption_column, *_KOHYA_CAPTIONS))
                _add_row(rows, _path_in_row(name), clean_captions(captions), json_columns(cells))
    except EncodingError as error:
        raise ConfigError(f"{path} {error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as sd-scripts writes it: {error}") from error
    return rows


def _decode_lines(data: bytes) -> str:
    """Returns a text; lines that all end with a carriage return alone, as of old Macs, end with line feeds."""
    text = decode_text(data)
    return text if "\n" in text else text.replace("\r", "\n")


def _json_rows(data: bytes) -> Iterator[Mapping[str, Any]]:
    """Yields the object on each line; empty lines are skipped."""
    for line in _decode_lines(data).split("\n"):  # not splitlines: strings may contain other line separators
        if line.strip():
            cells = json.loads(line, object_pairs_hook=join_repeated)
            if not isinstance(cells, dict):
                raise ValueError(f"{line[:50]!r} is not an object")
            yield cells


def _csv_rows(data: bytes) -> Iterator[Mapping[str, Any]]:
    """Yields the rows below the header."""
    text = _decode_lines(data)
    excel = _EXCEL_DELIMITER.match(text)
    text = text[excel.end() :] if excel else text
    delimiter, has_blanks = _csv_format(text.split("\n", 1)[0].rstrip("\r"))
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=has_blanks, strict=True)
    columns = next(reader, [])
    if columns and _FILE_NAME not in columns:
        raise ValueError(
            f"it has no column {_FILE_NAME}, but {', '.join(map(repr, columns))}: name the columns in the first line, "
            f"one of them {_FILE_NAME}"
        )
    for cells in filter(None, reader):
        if len(cells) > len(columns):
            raise ValueError(
                f"it has more cells than there are columns: put texts with {delimiter!r} in quotes, such as "
                f'a.jpg{delimiter}"a fox{delimiter} in snow"'
            )
        yield join_repeated([*itertools.zip_longest(columns, cells)])


def _csv_format(header: str) -> tuple[str, bool]:
    """Returns (delimiter, whether blanks follow it) by the header: the delimiter that sets `file_name` apart."""
    for delimiter in _DELIMITERS:
        cells = next(csv.reader([header], delimiter=delimiter), [])
        if _FILE_NAME in map(str.strip, cells):
            return delimiter, any(cell.startswith(" ") for cell in cells)
    return ",", False


def _parquet_rows(data: bytes) -> Iterator[Mapping[str, Any]]:
    """Yields the rows, read in batches."""
    parquet = require("pyarrow.parquet", "data")
    for batch in parquet.ParquetFile(io.BytesIO(data)).iter_batches():
        for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield join_repeated([*zip(batch.schema.names, cells, strict=True)])


def _path_in_row(name: Any) -> str:
    """Returns the normalized path of a row's image. Raises ValueError if it leads out of its folder by `..`."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"its {_FILE_NAME} is {name!r}: expected a path")
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        raise ValueError(f"its {_FILE_NAME} {name!r} is not a path") from error
    path = posixpath.normpath(name)
    if path.startswith("../") or path in (".", "..", "/") or "\0" in path:
        raise ValueError(f"its {_FILE_NAME} {name!r} is outside of the folder")
    return path


def _parse_captions(cell: Any) -> tuple[str, ...]:
    """Returns the captions in a cell, a string or a list of strings, without blank ones."""
    texts = cell if isinstance(cell, list) else [] if cell is None else [cell]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"its caption {text!r} is not a string")
    return clean_captions(texts)
