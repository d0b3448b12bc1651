"""Weighted mixtures of several sources, and balanced sampling of one source by a metadata column."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import SupportsIndex

import grain
import numpy as np
from tqdm import tqdm

from imagen_jax.data.left_out import LeftOut, left_out_of
from imagen_jax.data.record import CorruptRecordError, Record, Source, read_columns, read_objects
from imagen_jax.data.shuffle import child_seed, interleave, shuffled_epochs, training_order
from imagen_jax.errors import ConfigError

_PART_COLUMN = "part"  # names a record's source in a mixture
_MAX_GROUPS = 1000
_THREADS = 8  # that read columns
_MISSING = ""  # value of a record without the column


class MixtureSource:
    """The records of several sources, sampled by weights.

    Each part has its share of every stretch of training, and its own epochs. Read by index, the parts alternate in
    proportion to their lengths.

    Args:
        parts: sources by name.
        weights: positive weight of each part, by name; only their ratios matter.

    Raises:
        ConfigError: a part is empty.
    """

    def __init__(self, parts: Mapping[str, Source], weights: Mapping[str, float]) -> None:
        for name, part in parts.items():
            if not len(part):
                raise ConfigError(f"config.data.parts.{name}, {part!r}, is empty: leave it out")
        self._names, self._parts = list(parts), list(parts.values())
        self._weights = [weights[name] for name in parts]
        self.left_out = LeftOut().merge(map(left_out_of, self._parts))
        self._starts = np.cumsum([0, *map(len, self._parts)])  # of each part in the concatenation, and its length
        # Index i maps to position i * step of the concatenation, modulo its length. A step near the golden ratio,
        # coprime to the length, visits each position once and spreads any few consecutive indices over all parts.
        length = len(self)
        candidates = range(round(length * (math.sqrt(5) - 1) / 2), 0, -1)
        self._step = next(step for step in candidates if math.gcd(step, length) == 1)
        self._inverse_step = pow(self._step, -1, length)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: SupportsIndex) -> Record:
        part, i = self._locate(index)
        record = self._parts[part][i]
        return record._replace(columns={**record.columns, _PART_COLUMN: self._names[part]})

    def captions(self, index: SupportsIndex) -> tuple[str, ...]:
        """Returns the captions of record `index`."""
        part, i = self._locate(index)
        return self._parts[part].captions(i)

    def objects(self, index: SupportsIndex) -> bytes | np.ndarray | None:
        """Returns the map of objects of record `index`."""
        part, i = self._locate(index)
        return read_objects(self._parts[part], i)

    def columns(self, index: SupportsIndex) -> Mapping[str, str]:
        """Returns the columns of record `index`, which include the name of its part."""
        part, i = self._locate(index)
        return {**read_columns(self._parts[part], i), _PART_COLUMN: self._names[part]}

    def order(self, seed: int) -> grain.MapDataset:
        """Returns the training order: the parts' own orders, interleaved by weights."""
        orders = [
            training_order(part, child_seed(seed, i)).map(lambda index, start=int(start): self._index(start + index))
            for i, (part, start) in enumerate(zip(self._parts, self._starts[:-1], strict=True))
        ]
        return interleave(orders, self._weights, seed)

    def _locate(self, index: SupportsIndex) -> tuple[int, int]:
        """Returns (part, index in the part) of record `index`."""
        i = operator.index(index)
        if not 0 <= i < len(self):
            raise IndexError(f"index {i} is outside [0, {len(self)}) of {self!r}")
        position = i * self._step % len(self)
        part = int(np.searchsorted(self._starts, position, side="right")) - 1
        return part, position - int(self._starts[part])

    def _index(self, position: int) -> int:
        """Returns the index of the record at a position of the concatenated parts."""
        return position * self._inverse_step % len(self)

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={part!r}" for name, part in zip(self._names, self._parts, strict=True))
        return f"MixtureSource({parts})"


class BalancedSource:
    """A source whose records are sampled evenly by a column, or by weights of the column's values.

    Each value has its share of every stretch of training, and the records of a value have their own epochs: those of a
    rare value are repeated more often than those of a common one, and none before all others of its value. The column
    is read when an order is requested, so that inspecting records does not need it.

    Args:
        source: the records.
        column: name of a column; a record without it has the value "".
        weights: (value, positive weight) for every value; empty for equal weights.
    """

    def __init__(self, source: Source, column: str, weights: Sequence[tuple[str, float]] = ()) -> None:
        self._source, self._column, self._weights = source, column, weights
        self.left_out = left_out_of(source)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex) -> Record:
        return self._source[index]

    def captions(self, index: SupportsIndex) -> tuple[str, ...]:
        """Returns the captions of record `index`."""
        return self._source.captions(index)

    def objects(self, index: SupportsIndex) -> bytes | np.ndarray | None:
        """Returns the map of objects of record `index`."""
        return read_objects(self._source, index)

    def columns(self, index: SupportsIndex) -> Mapping[str, str]:
        """Returns the columns of record `index`."""
        return read_columns(self._source, index)

    def order(self, seed: int) -> grain.MapDataset:
        """Returns the training order: the records of each value shuffled, interleaved by weights.

        Raises:
            ConfigError: no record has the column, the weights are not those of its values, or it has too many values.
        """
        groups = self._group_indices()
        weights = _value_weights(list(groups), self._weights)
        orders = [
            shuffled_epochs(len(group), child_seed(seed, i)).map(lambda index, group=group: int(group[index]))
            for i, group in enumerate(groups.values())
        ]
        return interleave(orders, weights, seed)

    def _group_indices(self) -> dict[str, np.ndarray]:
        """Returns the indices of the records of each value, sorted by value."""
        groups: dict[str, list[int]] = {}
        for index, value in enumerate(_column_values(self._source, self._column)):
            if value is not None:
                groups.setdefault(value, []).append(index)
        if set(groups) <= {_MISSING}:
            raise ConfigError(
                f"no record of {self._source!r} has the column {self._column!r} (config.data.balance.column)"
            )
        if len(groups) > _MAX_GROUPS:
            raise ConfigError(
                f"column {self._column!r} of {self._source!r} has {len(groups):,} values, and at most {_MAX_GROUPS:,} "
                "can be balanced: set config.data.balance.column to a column with fewer values"
            )
        return {value: np.array(groups[value]) for value in sorted(groups)}

    def __repr__(self) -> str:
        return f"BalancedSource({self._source!r} by {self._column!r})"


def _column_values(source: Source, column: str) -> list[str | None]:
    """Returns each record's value of a column: _MISSING without the column, None if the record is corrupt."""

    def value(index: int) -> str | None:
        try:
            return read_columns(source, index).get(column, _MISSING)
        except CorruptRecordError:
            return None

    count = len(source)
    with ThreadPoolExecutor(_THREADS) as pool:
        values = pool.map(value, range(count))
        return list(tqdm(values, desc=f"column {column}", total=count, delay=2.0, mininterval=1.0, leave=False))


def _value_weights(values: Sequence[str], weights: Sequence[tuple[str, float]]) -> list[float]:
    """Returns the weight of each value, all 1 if `weights` is empty."""
    if not weights:
        return [1.0] * len(values)
    by_value = {str(value): weight for value, weight in weights}
    if len(by_value) < len(weights) or set(by_value) != set(values):
        raise ConfigError(
            f"config.data.balance.weights has the values {', '.join(map(repr, by_value))}, the column has "
            f"{', '.join(map(repr, values))}: give each value of the column one weight"
        )
    return [by_value[value] for value in values]
