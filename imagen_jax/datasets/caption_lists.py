"""Frozen lists of captions that an evaluation samples, such as the 30,000 of MS-COCO's validation set.

A list is a text file with a caption a line; or `.csv` with a column `text` or `caption`, as that of
text2image-benchmark; or `.jsonl` with an object a line. The latter two may name the image file of each caption in
`file_name`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from imagen_jax.errors import ConfigError
from imagen_jax.io.paths import as_path

_COLUMNS = ("text", "caption")
_FILE_NAME = "file_name"
_CHECKSUM_LENGTH = 32
_MAX_BYTES = 2**28


class CaptionList(NamedTuple):
    """Captions of a file.

    Attributes:
        name: the path of the file.
        checksum: the start of its SHA-256.
        captions: in order.
        files: the image file of each; empty if the file names none.
    """

    name: str
    checksum: str
    captions: list[str]
    files: list[str]

    def first(self, count: int) -> list[str]:
        """Returns the first captions. Raises ConfigError if there are fewer."""
        if count > len(self.captions):
            raise ConfigError(
                f"{self.name} has {len(self.captions):,} captions, and {count:,} images are asked for: give a longer "
                f"list, or num_samples={len(self.captions)}"
            )
        return self.captions[:count]

    def of_files(self, files: Sequence[str]) -> list[str]:
        """Returns the captions of image files: by their names if the list has them, otherwise in order.

        Names are compared without folders and suffixes. Raises ConfigError if captions are missing.
        """
        if not self.files:
            return self.first(len(files))
        by_stem = {_stem(file): caption for file, caption in zip(self.files, self.captions, strict=True)}
        missing = [file for file in files if _stem(file) not in by_stem]
        if missing:
            raise ConfigError(
                f"{self.name} has no caption of {len(missing):,} of {len(files):,} images, such as {missing[0]!r}: "
                "give a list that names each"
            )
        return [by_stem[_stem(file)] for file in files]


def read_caption_list(path: str | Path) -> CaptionList:
    """Reads a list of captions.

    Raises:
        ConfigError: the file is missing or damaged, lacks a column, or has an empty caption, or none at all.
    """
    try:
        data = as_path(path).read_bytes()
        text = data.decode("utf-8-sig")
        if len(data) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"captions {str(path)!r} cannot be read ({getattr(error, 'strerror', None) or error}): give a text file "
            "with a caption a line, or a .csv or .jsonl file"
        ) from error
    suffix = as_path(path).suffix.lower()
    if suffix == ".csv":
        rows: list[Any] = _csv_rows(text, path)
    elif suffix in (".jsonl", ".ndjson"):
        rows = _json_rows(text, path)
    else:
        rows = [{_COLUMNS[0]: line.strip()} for line in text.split("\n") if line.strip()]
    if not rows:
        raise ConfigError(f"{path} has no captions: give a caption a line")
    column = _column(rows[0], path)
    captions = [_caption(row, column, f"{path}, row {number}") for number, row in enumerate(rows, start=1)]
    files = [str(row.get(_FILE_NAME) or "") for row in rows]
    if any(files) and not all(files):
        raise ConfigError(f"{path}, row {files.index('') + 1}: {_FILE_NAME} is missing: name the file of each, or none")
    return CaptionList(
        str(path), hashlib.sha256(data).hexdigest()[:_CHECKSUM_LENGTH], captions, files if all(files) else []
    )


def _csv_rows(text: str, path: str | Path) -> list[dict[str, Any]]:
    try:
        return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ConfigError(f"{path} is not a CSV file ({error}): copy it again") from error


def _json_rows(text: str, path: str | Path) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{path}, line {number}, is not JSON ({error}): give an object a line") from error
    return rows


def _column(row: Any, path: str | Path) -> str:
    """Returns the name of the caption column. Raises ConfigError if there is none."""
    columns = list(row) if isinstance(row, Mapping) else []
    column = next((name for name in _COLUMNS if name in columns), None)
    if column is None:
        raise ConfigError(f"{path} has no column text or caption, but {', '.join(map(str, columns)) or 'none'}")
    return column


def _caption(row: Any, column: str, where: str) -> str:
    caption = row.get(column) if isinstance(row, Mapping) else None
    if not isinstance(caption, str) or not caption.strip():
        raise ConfigError(f"{where}: {column} is {caption!r}, expected a caption")
    return " ".join(caption.split())


def _stem(file: str) -> str:
    return posixpath.splitext(posixpath.basename(file.replace("\\", "/")))[0]
