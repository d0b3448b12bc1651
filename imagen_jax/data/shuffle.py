"""The endless order in which training visits the records of a source, with random access to any position.

A plain source is reshuffled each epoch, and an epoch visits every record once. A mixture or a balanced source samples
from several groups of records by weights; whatever the weights, each group has its own epochs.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import grain
import numpy as np

from imagen_jax.data.record import Source
from imagen_jax.diffusion.keys import seed_entropy

# Weights are rounded to counts that sum to about this: a share is off by at most half a count.
_ROUND_LENGTH = 10_000
# Grain's shuffle needs no memory, but searches some 50,000 candidates for an index below N: 5 ms per index for N = 5,
# 30 µs for N = 1,000.
_MIN_GRAIN_SHUFFLE = 1000


@runtime_checkable
class OrderedSource(Protocol):
    """A source that defines its own training order."""

    def order(self, seed: int) -> grain.MapDataset:
        """Returns the training order of this source, see `training_order`."""
        ...


def training_order(source: Source, seed: int) -> grain.MapDataset:
    """Returns the endless data set of record indices to train on, a function of the seed."""
    return source.order(seed) if isinstance(source, OrderedSource) else shuffled_epochs(len(source), seed)


def shuffled_epochs(length: int, seed: int) -> grain.MapDataset:
    """Returns the endless data set of the integers below `length`, reshuffled each epoch."""
    if length < _MIN_GRAIN_SHUFFLE:
        return _EpochShuffle(length, seed).seed(seed)
    return grain.MapDataset.range(length).seed(seed).shuffle().repeat()


def interleave(orders: Sequence[grain.MapDataset], weights: Sequence[float], seed: int) -> grain.MapDataset:
    """Interleaves endless orders so that each has its share of every stretch.

    Args:
        orders: endless data sets of indices.
        weights: positive weight of each order; only their ratios matter.
        seed: seed of the random transformations that follow.
    """
    return _WeightedInterleave(orders, _integer_weights(weights)).seed(seed)


def _integer_weights(weights: Sequence[float]) -> np.ndarray:
    """Returns integer sampling counts proportional to the weights, int [N], each at least 1, in lowest terms."""
    shares = np.asarray(weights, np.float64) / np.sum(weights)
    counts = np.maximum(1, np.round(shares * max(_ROUND_LENGTH, 100 * len(shares)))).astype(np.int64)
    return counts // np.gcd.reduce(counts)


def child_seed(seed: int, index: int) -> int:
    """Derives the seed of part `index`, so that parts are shuffled independently."""
    return int(np.random.SeedSequence(seed_entropy(seed, index)).generate_state(1)[0])


class _EpochShuffle(grain.MapDataset):
    """The integers below a small `length` in endless epochs, each a permutation of them."""

    def __init__(self, length: int, seed: int) -> None:
        super().__init__()
        self._length, self._shuffle_seed = length, seed

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> int:
        epoch, i = divmod(index, self._length)
        return int(_permutation(self._length, self._shuffle_seed, epoch)[i])


@functools.lru_cache(maxsize=4096)
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(seed_entropy(seed, epoch)).permutation(length)


class _WeightedInterleave(grain.MapDataset):
    """Rounds that contain `counts[i]` elements of parent i each, spread as evenly as possible."""

    def __init__(self, parents: Sequence[grain.MapDataset], counts: np.ndarray) -> None:
        super().__init__(list(parents))
        self._counts = counts
        parent = np.repeat(np.arange(len(counts)), counts)
        rank = np.concatenate([np.arange(count) for count in counts])
        # element r of n is placed at (r + 1/2) / n of the round; ties go to the first parent
        order = np.argsort((rank + 0.5) / counts[parent], kind="stable")
        self._parent_at, self._rank_at = parent[order], rank[order]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> int:
        rounds, i = divmod(index, len(self._parent_at))
        parent = self._parent_at[i]
        return self._parents[parent][int(rounds * self._counts[parent] + self._rank_at[i])]
