"""Records that cannot be read: counted, named once, and too many of them end the run."""

from __future__ import annotations

import math
import threading

from imagen_jax.data.record import BrokenRecord
from imagen_jax.errors import ConfigError

# The share of broken records is judged by as many reads, or by all records where these are fewer: by less it would be
# chance.
JUDGED_BY = 2000


def allowed(max_share: float, count: int) -> int:
    """How many of so many may be broken: a share, rounded up, since of a few each is more than a small share."""
    return math.ceil(max_share * count)


class Broken:
    """What has been read of a source, by any thread, and what of it was broken.

    Args:
        source: its name, for messages.
        records: how many it has.
        max_share: of the reads that may meet a broken record (config.data.max_broken).
    """

    def __init__(self, source: str, records: int, max_share: float) -> None:
        if not 0 <= max_share <= 1:
            raise ConfigError(f"config.data.max_broken {max_share} is not a share in [0, 1]")
        self._source, self._records, self._max_share = source, records, max_share
        self._reads = self._broken_reads = 0
        self._names: set[str] = set()
        self._news: list[str] = []
        self._lock = threading.RLock()

    @property
    def count(self) -> int:
        """How many different records have been found broken."""
        return len(self._names)

    def news(self) -> list[str]:
        """A line for each record found broken since the last call: its name and what ails it."""
        with self._lock:
            news, self._news = self._news, []
        return news

    def read(self, broken: BrokenRecord | None) -> None:
        """A record has been read, or was broken. Raises UsageError when too many are."""
        with self._lock:
            self._reads += 1
            if broken is None:
                return
            self._broken_reads += 1
            self.name(broken)
            if self._broken_reads > allowed(self._max_share, max(self._reads, min(self._records, JUDGED_BY))):
                raise self.too_many(broken)

    def name(self, broken: BrokenRecord) -> None:
        """A broken record, for the news if it is new."""
        with self._lock:
            if broken.name not in self._names:
                self._names.add(broken.name)
                self._news.append(str(broken))

    def too_many(self, last: BrokenRecord) -> ConfigError:
        """The sentence that ends a run."""
        return ConfigError(
            f"{self._source} has too many broken records, {self._broken_reads} in {self._reads} reads of its "
            f"{self._records}: mend or remove them, or allow a larger share, config.data.max_broken is "
            f"{self._max_share}; the last is {last}"
        )
