"""Records, and the protocol of the sources that give random access to them.

To add a source, write one small module with a class that has the methods of `Source`, and name it in
`datasets/registry.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol, SupportsIndex

import numpy as np

_NO_COLUMNS: Mapping[str, str] = MappingProxyType({})


class Record(NamedTuple):
    """One example as its source stores it.

    Attributes:
        image: an encoded image file, or a decoded image, uint8 or uint16 [H, W, C], that is used as it is.
        captions: any number of captions; none for an unconditional example.
        name: path or key, for logs.
        columns: metadata, for balancing and inspection.
    """

    image: bytes | np.ndarray
    captions: tuple[str, ...]
    name: str
    columns: Mapping[str, str] = _NO_COLUMNS


class Source(Protocol):
    """Random access to records. A record is a pure function of its index. Threads may share a source.

    A source may also have methods `columns` (see `read_columns`) and `objects` (see `object_maps.py`), and an attribute
    `left_out`, what is in its place and not used (see `left_out.py`).
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex) -> Record:
        """Returns record `index`.

        Raises:
            CorruptRecordError: the record cannot be read.
            IndexError: `index` is outside [0, len).
        """
        ...

    def captions(self, index: SupportsIndex) -> tuple[str, ...]:
        """Returns the captions of record `index` without reading its image. Raises what `[index]` does."""
        ...


def read_columns(source: Source, index: SupportsIndex) -> Mapping[str, str]:
    """Returns the columns of a record, without reading its image if the source has a method `columns`.

    Raises:
        CorruptRecordError: the record cannot be read.
    """
    columns = getattr(source, "columns", None)
    return source[index].columns if columns is None else columns(index)


def read_objects(source: Source, index: SupportsIndex) -> bytes | np.ndarray | None:
    """Returns the map of a record's objects, a file or uint8 [H, W], see `object_maps.py`; None if there is none.

    Raises:
        CorruptRecordError: the record cannot be read.
    """
    objects = getattr(source, "objects", None)
    return None if objects is None else objects(index)


class CorruptRecordError(Exception):
    """A record that cannot be read or decoded: its name and the reason. Another record is read in its place."""

    def __init__(self, name: str, reason: str) -> None:
        # file names may contain line breaks: keep a log line a single line
        self.name, self.reason = (text if text.isprintable() else ascii(text) for text in (name, reason))
        super().__init__(f"{self.name}: {self.reason}")
