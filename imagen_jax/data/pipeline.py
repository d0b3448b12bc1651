"""From a source to batches, by Grain: shuffled, repeated, tokenized, split over processes, prefetched.

The global batch of step k is the same for any number of processes, and the position is one integer: the state of
the iterator goes into the checkpoint, and setting it goes on with the very next example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from imagen_jax.data.sources import Example, Source
from imagen_jax.errors import UsageError
from imagen_jax.images import DTYPES

Tokenize = Callable[[str], tuple[np.ndarray, np.ndarray]]


class RowsOfBatches(grain.MapDataset):
    """Of each ``batch_size`` examples the ones at ``rows``: what one process reads. The others are never touched."""

    def __init__(self, examples: grain.MapDataset, batch_size: int, rows: Sequence[int] | np.ndarray) -> None:
        super().__init__(examples)
        self._batch_size, self._rows = batch_size, [int(row) for row in rows]

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index: int) -> Any:
        batch, place = divmod(index, len(self._rows))
        return self._parent[batch * self._batch_size + self._rows[place]]


def training_batches(
    source: Source,
    tokenize: Tokenize,
    channels: int,
    batch_size: int,
    seed: int,
    threads: int,
    prefetch: int,
    rows: Sequence[int] | np.ndarray | None = None,
) -> grain.DatasetIterator:
    """An endless iterator of this process's part of each batch, with ``get_state`` and ``set_state``.

    Args:
        source: random access to examples.
        tokenize: caption → (tokens int32 [L], mask bool [L]).
        channels: of the images; others are refused.
        batch_size: global.
        seed: of the shuffling.
        threads: that read and decode; about one a core.
        prefetch: batches to keep ready.
        rows: of each batch [B] that this process reads, as ``sharding.own_rows`` says; None for all.

    Returns:
        dicts of ``image`` uint8 or uint16 [rows, H, W, C], ``tokens`` int32 [rows, L], ``mask`` bool [rows, L].

    Raises:
        UsageError: the source is empty, or its images have another number of channels or another type.
    """
    if not len(source):
        raise UsageError(f"{source!r} is empty: there is nothing to train on")
    image = source[0]["image"]
    found = image.shape[-1]
    if found != channels:
        raise UsageError(
            f"images of {source!r} have {found} channels, config.channels is {channels}: set it to {found}"
        )
    if image.dtype not in DTYPES.values():
        raise UsageError(f"images of {source!r} are {image.dtype}: a source gives uint8 or uint16")

    def prepare(example: Example) -> dict[str, Any]:
        tokens, mask = tokenize(example["caption"])
        return {"image": example["image"], "tokens": tokens, "mask": mask}

    dataset = in_order(source, seed).map(prepare)
    rows = range(batch_size) if rows is None else rows
    dataset = RowsOfBatches(dataset, batch_size, rows).batch(len(rows), drop_remainder=True)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(dataset.to_iter_dataset(options))


def in_order(source: Any, seed: int) -> grain.MapDataset:
    """A source's items without end, in the order in which training sees them."""
    return grain.MapDataset.source(source).seed(seed).shuffle().repeat()


def examples_of_batch(count: int, batch_size: int, seed: int, number: int) -> list[int]:
    """The indices, in a source of ``count`` examples, of those of a batch: 0 is the first that training sees."""
    order = in_order(range(count), seed)
    return [int(order[i]) for i in range(number * batch_size, (number + 1) * batch_size)]


def position_in_batches_of(state: dict[str, Any], before: int, now: int) -> tuple[dict[str, Any], int]:
    """(an iterator's state in batches of ``now`` examples, how many are skipped), from one in batches of ``before``.

    None is seen twice: where the new batches do not end with the old, what is left of one is skipped.
    """
    seen = state["next_index"] * before
    batches = -(-seen // now)
    return {**state, "next_index": batches}, batches * now - seen
