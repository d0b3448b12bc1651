"""Accounting of corrupt records: each is logged once, and too many of them end the run."""

from __future__ import annotations

import math
import threading

from imagen_jax.data.record import CorruptRecordError
from imagen_jax.errors import ConfigError

# The corrupt fraction is taken of at least this many reads (or of all records, if there are fewer): a fraction of a
# few reads would be chance.
_MIN_READS = 2000
_NAMED = 3  # corrupt records in the error that ends a run, beside the last


def max_allowed(max_fraction: float, count: int) -> int:
    """Returns how many of `count` records may be corrupt.

    The number is rounded up, because one of a few records is more than a small fraction already.
    """
    return math.ceil(max_fraction * count)


class CorruptRecords:
    """Counts the reads of a source and the corrupt ones among them. Threads may share it.

    Args:
        source: name of the source, for messages.
        num_records: number of records in the source.
        max_fraction: largest fraction of corrupt reads, in [0, 1] (`data.max_corrupt`).
    """

    def __init__(self, source: str, num_records: int, max_fraction: float) -> None:
        self._source, self._num_records, self._max_fraction = source, num_records, max_fraction
        self._reads = self._corrupt_reads = 0
        self._names: dict[str, str] = {}  # name -> line of text
        self._new: list[str] = []
        self._lock = threading.RLock()

    @property
    def count(self) -> int:
        """Number of distinct corrupt records seen so far."""
        return len(self._names)

    def pop_new(self) -> list[str]:
        """Returns a line with name and reason for each record found to be corrupt since the last call."""
        with self._lock:
            new, self._new = self._new, []
        return new

    def count_read(self, corrupt: CorruptRecordError | None) -> None:
        """Counts a read.

        Args:
            corrupt: the error of the read; None if it succeeded.

        Raises:
            ConfigError: too many reads were corrupt.
        """
        with self._lock:
            self._reads += 1
            if corrupt is None:
                return
            self._corrupt_reads += 1
            self.add(corrupt)
            counted = max(self._reads, min(self._num_records, _MIN_READS))
            if self._corrupt_reads > max_allowed(self._max_fraction, counted):
                raise self.error(corrupt)

    def add(self, corrupt: CorruptRecordError) -> None:
        """Adds a corrupt record to the new ones, unless it is known already."""
        with self._lock:
            if corrupt.name not in self._names:
                self._names[corrupt.name] = str(corrupt)
                self._new.append(str(corrupt))

    def error(self, last: CorruptRecordError) -> ConfigError:
        """Returns the error that ends the run because of too many corrupt records."""
        first = [line for name, line in self._names.items() if name != last.name][:_NAMED]
        others = f"some are {'; '.join(first)}; " if first else ""
        return ConfigError(
            f"{self._source} has too many corrupt records, {self._corrupt_reads} in {self._reads} reads of its "
            f"{self._num_records} records: repair or remove them, or raise config.data.max_corrupt, which is "
            f"{self._max_fraction}; `imagen inspect` lists all; {others}the last is {last}"
        )
