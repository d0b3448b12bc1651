"""Several sources as one, drawn from by weights; one source, drawn from evenly by a column of its records."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import SupportsIndex

import grain
import numpy as np
from tqdm import tqdm

from imagen_jax.data.record import BrokenRecord, Record, Source, columns_of
from imagen_jax.data.shuffle import check_weight, order, own_seed, shuffled, woven
from imagen_jax.errors import ConfigError

PART = "part"  # the column that names a record's source in a mixture
MAX_GROUPS = 1000
THREADS = 8  # that read columns
MISSING = ""  # the value of a record without the column


class Mixture:
    """The records of several sources. Each of them has its share of every stretch of training, and epochs of its own.

    Records have an index for reading them all once, along which sources alternate, as large as they are.

    Args:
        parts: sources by name.
        weights: of each, any numbers above 0: what counts is their ratio.

    Raises:
        UsageError: there is no part, one is empty, or a weight is none.
    """

    def __init__(self, parts: Mapping[str, Source], weights: Mapping[str, float]) -> None:
        if not parts:
            raise ConfigError("config.data.parts is empty: a mixture needs the configs of its sources, by name")
        for name, part in parts.items():
            if not len(part):
                raise ConfigError(f"config.data.parts.{name}, {part!r}, is empty: leave it out")
        self._names, self._parts = list(parts), list(parts.values())
        self._weights = [check_weight(weights[name], f"config.data.parts.{name}.weight") for name in parts]
        self._first = np.cumsum([0, *map(len, self._parts)])  # of each part among all, and where these end
        # Steps as long as the golden section of a ring visit each of its places once, any few of them spread over it.
        length = len(self)
        golden = range(round(length * (math.sqrt(5) - 1) / 2), 0, -1)
        self._step = next(step for step in golden if math.gcd(step, length) == 1)
        self._back = pow(self._step, -1, length)

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: SupportsIndex) -> Record:
        part, place = self._find(index)
        record = self._parts[part][place]
        return record._replace(columns={**record.columns, PART: self._names[part]})

    def captions(self, index: SupportsIndex) -> tuple[str, ...]:
        """The captions of record ``index``."""
        part, place = self._find(index)
        return self._parts[part].captions(place)

    def columns(self, index: SupportsIndex) -> Mapping[str, str]:
        """The columns of record ``index``, one of them its part."""
        part, place = self._find(index)
        return {**columns_of(self._parts[part], place), PART: self._names[part]}

    def order(self, seed: int) -> grain.MapDataset:
        """Which record comes at each position: of the parts' own orders, by weights."""
        orders = [
            order(part, own_seed(seed, i)).map(lambda place, first=int(first): self._index(first + place))
            for i, (part, first) in enumerate(zip(self._parts, self._first[:-1], strict=True))
        ]
        return woven(orders, self._weights, seed)

    def _find(self, index: SupportsIndex) -> tuple[int, int]:
        """(part, index in it) of record ``index``."""
        i = operator.index(index)
        if not 0 <= i < len(self):
            raise IndexError(f"index {i} is outside [0, {len(self)}) of {self!r}")
        place = i * self._step % len(self)
        part = int(np.searchsorted(self._first, place, side="right")) - 1
        return part, place - int(self._first[part])

    def _index(self, place: int) -> int:
        """The index of the record at a place among all, the parts one after another."""
        return place * self._back % len(self)

    def __repr__(self) -> str:
        return f"Mixture({', '.join(f'{name}={part!r}' for name, part in zip(self._names, self._parts, strict=True))})"


class Balanced:
    """A source whose records are drawn evenly by a column, or by weights of its values.

    Of every stretch of training each value has its share; the records of a value go through epochs of their own: those
    of a rare value come more often than those of a common one, and none twice before all of its value came once. The
    column is read when an order is asked for: what only looks at records needs none.

    Args:
        source: of records.
        column: of theirs; a record without it has the value "".
        weights: (value, weight) for every value, above 0; none: all alike.

    Raises:
        UsageError: from ``order``, if no record has the column, values and weights are not of each other, or there are
            too many values.
    """

    def __init__(self, source: Source, column: str, weights: Sequence[tuple[str, float]] = ()) -> None:
        self._source, self._column, self._given_weights = source, column, weights

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex) -> Record:
        return self._source[index]

    def captions(self, index: SupportsIndex) -> tuple[str, ...]:
        """The captions of record ``index``."""
        return self._source.captions(index)

    def columns(self, index: SupportsIndex) -> Mapping[str, str]:
        """The columns of record ``index``."""
        return columns_of(self._source, index)

    def order(self, seed: int) -> grain.MapDataset:
        """Which record comes at each position: of the values' own orders, by weights. Raises UsageError, see above."""
        groups = self._groups()
        weights = weights_of(list(groups), self._given_weights)
        orders = [
            shuffled(len(group), own_seed(seed, i)).map(lambda place, group=group: int(group[place]))
            for i, group in enumerate(groups.values())
        ]
        return woven(orders, weights, seed)

    def _groups(self) -> dict[str, np.ndarray]:
        """The records of each value, by index, the values sorted."""
        groups: dict[str, list[int]] = {}
        for index, value in enumerate(values_of(self._source, self._column)):
            if value is not None:
                groups.setdefault(value, []).append(index)
        if set(groups) <= {MISSING}:
            raise ConfigError(
                f"no record of {self._source!r} has the column {self._column!r} (config.data.balance.column)"
            )
        if len(groups) > MAX_GROUPS:
            raise ConfigError(
                f"column {self._column!r} of {self._source!r} has {len(groups):,} values, and at most {MAX_GROUPS:,} "
                "can be balanced: set config.data.balance.column to one of few values"
            )
        return {value: np.array(groups[value]) for value in sorted(groups)}

    def __repr__(self) -> str:
        return f"Balanced({self._source!r} by {self._column!r})"


def values_of(source: Source, column: str) -> list[str | None]:
    """What each record has in a column: MISSING without it, None where the record cannot be read."""

    def value(index: int) -> str | None:
        try:
            return columns_of(source, index).get(column, MISSING)
        except BrokenRecord:
            return None

    count = len(source)
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(value, range(count))
        return list(tqdm(found, desc=f"column {column}", total=count, delay=2.0, mininterval=1.0, leave=False))


def weights_of(values: Sequence[str], weights: Sequence[tuple[str, float]]) -> list[float]:
    """The weight of each value, all alike if none is given. Raises UsageError unless just these values have weights."""
    if not weights:
        return [1.0] * len(values)
    given = {str(value): weight for value, weight in weights}
    if len(given) < len(weights) or set(given) != set(values):
        raise ConfigError(
            f"config.data.balance.weights has {', '.join(map(repr, given))}, the column "
            f"{', '.join(map(repr, values))}: give each value of the column one weight"
        )
    return [check_weight(given[value], f"config.data.balance.weights, {value!r}:") for value in values]
