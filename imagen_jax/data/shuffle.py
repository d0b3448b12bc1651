"""In which order the records of a source are trained on: endless, and by random access to any position of it.

A source is shuffled anew in each epoch, which has every record once. A mixture, and what is balanced by a column, draws
from several groups of records by weights: whatever the weights, each group goes through epochs of its own.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import grain
import numpy as np

from imagen_jax.data.record import Source
from imagen_jax.errors import ConfigError

# To how many draws weights are rounded: a share is off by half of one at most.
ROUND = 10_000
# Grain's shuffle needs no memory, but looks for a number below N among some 50,000: 5 ms each of 5, 30 µs of 1,000.
FEW = 1000


@runtime_checkable
class Ordered(Protocol):
    """A source that has an order of its own."""

    def order(self, seed: int) -> grain.MapDataset:
        """As ``order``, below."""
        ...


def order(source: Source, seed: int) -> grain.MapDataset:
    """The index of the record at each position, without end: the same for the same seed."""
    return source.order(seed) if isinstance(source, Ordered) else shuffled(len(source), seed)


def shuffled(length: int, seed: int) -> grain.MapDataset:
    """The numbers below ``length`` in epochs, each of which has every one once, in another order."""
    if length < FEW:
        return Permuted(length, seed).seed(seed)
    return grain.MapDataset.range(length).seed(seed).shuffle().repeat()


def woven(orders: Sequence[grain.MapDataset], weights: Sequence[float], seed: int) -> grain.MapDataset:
    """Of several endless orders one, in which each has its share of every stretch; ``seed`` is for what follows it."""
    return Woven(orders, draws(weights)).seed(seed)


def draws(weights: Sequence[float]) -> np.ndarray:
    """How often each of several is drawn in a round, int [N], at least once: the weights in the smallest numbers."""
    shares = np.asarray(weights, np.float64) / np.sum(weights)
    counts = np.maximum(1, np.round(shares * max(ROUND, 100 * len(shares)))).astype(np.int64)
    return counts // np.gcd.reduce(counts)


def check_weight(weight: object, name: str) -> float:
    """A weight of a config. Raises UsageError, which begins with the name, unless it is a number above 0."""
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise ConfigError(f"{name} {weight!r} is no number above 0")
    return float(weight)


def own_seed(seed: int, part: int) -> int:
    """A seed for each of several parts, so that they are not shuffled alike."""
    return int(np.random.SeedSequence((seed, part)).generate_state(1)[0])


class Permuted(grain.MapDataset):
    """A few numbers, those below ``length``, in endless epochs, each a permutation of them."""

    def __init__(self, length: int, seed: int) -> None:
        super().__init__()
        self._length, self._own_seed = length, seed

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> int:
        epoch, place = divmod(index, self._length)
        return int(_permutation(self._length, self._own_seed, epoch)[place])


@functools.lru_cache(maxsize=4096)
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(length)


class Woven(grain.MapDataset):
    """Rounds, each with ``counts[i]`` elements of parent i, as evenly spread as they can be."""

    def __init__(self, parents: Sequence[grain.MapDataset], counts: np.ndarray) -> None:
        super().__init__(list(parents))
        self._counts = counts
        parent = np.repeat(np.arange(len(counts)), counts)
        draw = np.concatenate([np.arange(count) for count in counts])
        # draw r of n stands at (r + 1/2) / n of the round; where two stand at one place, the first parent comes first
        places = np.argsort((draw + 0.5) / counts[parent], kind="stable")
        self._parent_at, self._draw_at = parent[places], draw[places]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> int:
        past, place = divmod(index, len(self._parent_at))
        parent = self._parent_at[place]
        return self._parents[parent][int(past * self._counts[parent] + self._draw_at[place])]
