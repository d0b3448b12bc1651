"""From examples to batches, by Grain: shuffled, repeated, tokenized, split over processes, prefetched.

The global batch of step k is the same for any number of processes, and the position is one integer: the state of
the iterator goes into the checkpoint, and setting it goes on with the very next example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from imagen_jax.data.dataset import Examples, any_caption
from imagen_jax.data.shuffle import order

Text = Callable[[str], dict[str, np.ndarray]]


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
    examples: Examples | list[Examples],
    text: Text,
    batch_size: int,
    seed: int,
    threads: int,
    prefetch: int,
    rows: Sequence[int] | np.ndarray | None = None,
) -> grain.DatasetIterator:
    """An endless iterator of this process's part of each batch, with ``get_state`` and ``set_state``.

    Args:
        examples: of a source; or several, of other sizes, of which each has batches of its own, in proportion.
        text: a caption → the arrays of an example that stand for it, by name.
        batch_size: global.
        seed: of the shuffling, and of the choice among an example's captions.
        threads: that read and decode; about one a core.
        prefetch: batches to keep ready.
        rows: of each batch [B] that this process reads, as ``sharding.own_rows`` says; None for all.

    Returns:
        dicts of ``image`` uint8 or uint16 [rows, H, W, C], and of what ``text`` gives, each with [rows] before it.
    """
    rows = range(batch_size) if rows is None else rows

    def own_batches(examples: Examples) -> grain.MapDataset:
        def prepare(index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
            example = examples[index]
            return {"image": examples.fit(example.image, rng), **text(any_caption(example.captions, rng))}

        # the generator is that of (seed, position), and so the same in every run, on any number of processes
        dataset = order(examples.source, seed).random_map(prepare)
        return RowsOfBatches(dataset, batch_size, rows).batch(len(rows), drop_remainder=True)

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(in_turns(examples, own_batches).to_iter_dataset(options))


def in_turns(
    examples: Examples | list[Examples], batches_of: Callable[[Examples], grain.MapDataset]
) -> grain.MapDataset:
    """The batches of one or several, in turns that the position alone decides; all end their epochs together."""
    parts = examples if isinstance(examples, list) else [examples]
    return grain.MapDataset.mix([batches_of(part) for part in parts], [float(len(part)) for part in parts])


def names_in_batch(examples: Examples | list[Examples], batch_size: int, seed: int, number: int) -> list[str]:
    """The names of the records of a global batch: 0 is the first that training sees."""

    def batches_of(examples: Examples) -> grain.MapDataset:
        named = order(examples.source, seed).map(lambda index: examples.name(index))
        return named.batch(batch_size, drop_remainder=True, batch_fn=list)

    return in_turns(examples, batches_of)[number]


def position_in_batches_of(state: dict[str, Any], before: int, now: int) -> tuple[dict[str, Any], int]:
    """(an iterator's state in batches of ``now`` examples, how many are skipped), from one in batches of ``before``.

    None is seen twice: where the new batches do not end with the old, what is left of one is skipped.
    """
    seen = state["next_index"] * before
    batches = -(-seen // now)
    return {**state, "next_index": batches}, batches * now - seen
