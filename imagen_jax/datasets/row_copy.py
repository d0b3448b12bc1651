"""A local copy of the rows of a Parquet file, with random access.

Parquet compresses columns in row groups of up to gigabytes, so that reading one image means reading thousands. The copy
has the images one after the other, as `datasets` of Hugging Face has in its cache, and is made once:

    image, description (JSON), image, description, …, index, footer

It is read by position, without being mapped into memory: neither open files nor memory grow with its size, and a
damaged row costs that row. The index takes 32 bytes a row.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imagen_jax.io import storage
from imagen_jax.io.atomic import replacing

_MAGIC = b"imagen_jax rows 1"
_FOOTER = struct.Struct(f"<{len(_MAGIC)}sQI")  # magic, number of rows, CRC-32 of the index
_INDEX_DTYPE = "<i8"
_START, _IMAGE, _DESCRIPTION, _CRC = range(4)  # columns of the index: position, two lengths, CRC-32 of both parts
NO_IMAGE = -1  # length of an image that is missing


class Row(NamedTuple):
    """A row to be copied.

    Attributes:
        image: an image file; None if it is missing.
        description: what JSON can hold.
    """

    image: bytes | memoryview | None
    description: Any


class RowCopy:
    """The rows of a finished copy. Threads may share it.

    Args:
        path: the file that `write_rows` wrote.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a copy, or its index is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path, size = str(path), path.stat().st_size
        footer = storage.read_range(self._path, max(0, size - _FOOTER.size), _FOOTER.size)
        if len(footer) < _FOOTER.size or not footer.startswith(_MAGIC):
            raise ValueError("it is not a copy of rows")
        _, rows, checksum = _FOOTER.unpack(footer)
        length = rows * 4 * np.dtype(_INDEX_DTYPE).itemsize
        start = size - _FOOTER.size - length
        index = storage.read_range(self._path, start, length) if start >= 0 else b""
        if len(index) != length or zlib.crc32(index) != checksum:
            raise ValueError("its index is damaged")
        self._index = np.frombuffer(index, _INDEX_DTYPE).reshape(rows, 4)

    def __len__(self) -> int:
        return len(self._index)

    def read(self, row: int) -> tuple[bytes | None, Any]:
        """Returns (image, description) of a row; None for an image that is missing.

        Raises:
            OSError: the copy cannot be read.
            ValueError: the row is damaged.
        """
        start, image_length, length, checksum = (int(number) for number in self._index[row])
        image_end = max(image_length, 0)
        data = storage.read_range(self._path, start, image_end + length)
        if len(data) != image_end + length or zlib.crc32(data) != checksum:
            raise ValueError("its copy is damaged")
        return None if image_length == NO_IMAGE else data[:image_end], json.loads(data[image_end:])

    def description(self, row: int) -> Any:
        """Returns the description of a row without reading its image. Raises as `read`."""
        start, image_length, length, _ = (int(number) for number in self._index[row])
        return json.loads(storage.read_range(self._path, start + max(image_length, 0), length))


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes a copy, atomically: it appears when it is complete. Raises OSError, and what `rows` does."""
    index, position = [], 0
    with replacing(path) as file:
        for row in rows:
            description = json.dumps(row.description).encode()
            image = b"" if row.image is None else row.image
            checksum = zlib.crc32(description, zlib.crc32(image))
            length = NO_IMAGE if row.image is None else len(image)
            index.append((position, length, len(description), checksum))
            file.write(image)
            file.write(description)
            position += len(image) + len(description)
        data = np.array(index, _INDEX_DTYPE).reshape(-1, 4).tobytes()
        file.write(data + _FOOTER.pack(_MAGIC, len(index), zlib.crc32(data)))
        file.flush()
        os.fsync(file.fileno())


def remove_unfinished(path: Path) -> None:
    """Deletes what processes that were killed have left of a copy. Only for who has the sole right to write it."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        leftover.unlink(missing_ok=True)
