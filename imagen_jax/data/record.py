"""What every data source gives: records, by random access.

To add a source, write one small module with a class of the protocol ``Source``, and name it in ``sources.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol, SupportsIndex

import numpy as np

NO_COLUMNS: Mapping[str, str] = MappingProxyType({})


class Record(NamedTuple):
    """One example as its source has it."""

    image: bytes | np.ndarray  # an encoded image file, or an array [H, W, C], uint8 or uint16, that is ready as it is
    captions: tuple[str, ...]  # any number of them; none is an unconditional example
    name: str  # its path or key, for logs
    columns: Mapping[str, str] = NO_COLUMNS  # of its metadata, for weights and audits


class Source(Protocol):
    """Random access to records: each is a pure function of its index. Many threads ask at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex) -> Record:
        """Record ``index``, of [0, len). Raises BrokenRecord if it cannot be read, IndexError outside."""
        ...

    def captions(self, index: SupportsIndex) -> tuple[str, ...]:
        """The captions of record ``index``, without a touch of its picture. Raises as ``[index]`` does."""
        ...


def columns_of(source: Source, index: SupportsIndex) -> Mapping[str, str]:
    """The columns of a record, without a touch of its picture where the source has ``columns`` for that.

    Raises BrokenRecord as reading does.
    """
    columns = getattr(source, "columns", None)
    return source[index].columns if columns is None else columns(index)


class BrokenRecord(Exception):
    """One record that cannot be read or decoded: its name and why. Another is read in its place."""

    def __init__(self, name: str, reason: str) -> None:
        # files can be called anything: one line of a log stays one
        self.name, self.reason = (text if text.isprintable() else ascii(text) for text in (name, reason))
        super().__init__(f"{self.name}: {self.reason}")
