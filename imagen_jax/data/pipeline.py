"""From examples to batches, by Grain: shuffled, repeated, tokenized, split over processes, prefetched.

The global batch of step k is the same for any number of processes, and the position is one integer: the iterator's
state goes into the checkpoint, and restoring it resumes with the very next example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from imagen_jax.data.dataset import ImageTextDataset, random_caption
from imagen_jax.data.shuffle import training_order

_TextFeatures = Callable[[str], dict[str, np.ndarray]]


class _BatchRows(grain.MapDataset):
    """Keeps the elements at `rows` of each batch: the share of one process. The other elements are never read."""

    def __init__(self, elements: grain.MapDataset, batch_size: int, rows: Sequence[int] | np.ndarray) -> None:
        super().__init__(elements)
        self._batch_size, self._rows = batch_size, [int(row) for row in rows]

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index: int) -> Any:
        batch, i = divmod(index, len(self._rows))
        return self._parent[batch * self._batch_size + self._rows[i]]


def training_batches(
    datasets: ImageTextDataset | list[ImageTextDataset],
    text_features: _TextFeatures,
    batch_size: int,
    seed: int,
    threads: int,
    prefetch: int,
    rows: Sequence[int] | np.ndarray | None = None,
) -> grain.DatasetIterator:
    """Returns an endless iterator over this process's rows of each batch, with `get_state` and `set_state`.

    Args:
        datasets: one data set; or several, one for each bucket size, each of which has its own batches in proportion
            to its length.
        text_features: maps a caption to the arrays that represent it in a batch, by name.
        batch_size: global batch size B.
        seed: seed of the shuffling, of crops and flips, and of the choice among an example's captions.
        threads: number of threads that read and decode; about one per core.
        prefetch: number of batches to keep ready.
        rows: the rows of each global batch that this process reads; None for all.

    Returns:
        An iterator over dicts with `image`, uint8 or uint16 [rows, H, W, C] of full images or crops, the arrays of
        `text_features`, each with a leading axis [rows], and `objects`, of the images' dtype [rows, H, W, 1], if the
        examples have them.
    """
    rows = range(batch_size) if rows is None else rows

    def local_batches(dataset: ImageTextDataset) -> grain.MapDataset:
        def load(index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
            example = dataset[index]
            image, channels = example.image, example.image.shape[-1]
            if example.objects is not None:
                # the map is cropped and mirrored as one more channel
                image = np.concatenate([image, example.objects], axis=-1, dtype=image.dtype)
            image = dataset.fit(image, rng)
            features = text_features(random_caption(example.captions, rng))
            # cropped last, so that a crop size changes neither flips nor captions
            image = dataset.training_crop(image, rng)
            objects = {} if example.objects is None else {"objects": image[..., channels:]}
            return {"image": image[..., :channels], **objects, **features}

        # the generator is a function of (seed, position): the same in every run, on any number of processes
        elements = training_order(dataset.source, seed).random_map(load)
        return _BatchRows(elements, batch_size, rows).batch(len(rows), drop_remainder=True)

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(_mix(datasets, local_batches).to_iter_dataset(options))


def _mix(
    datasets: ImageTextDataset | list[ImageTextDataset], make_batches: Callable[[ImageTextDataset], grain.MapDataset]
) -> grain.MapDataset:
    """Mixes the batches of several data sets in an order that depends on the position alone; their epochs align."""
    parts = datasets if isinstance(datasets, list) else [datasets]
    return grain.MapDataset.mix([make_batches(part) for part in parts], [float(len(part)) for part in parts])


def batch_record_names(
    datasets: ImageTextDataset | list[ImageTextDataset], batch_size: int, seed: int, number: int
) -> list[str]:
    """Returns the names of the records of global batch `number`; 0 is the first batch of training.

    Args:
        datasets: as for `training_batches`.
        batch_size: as for `training_batches`.
        seed: as for `training_batches`.
        number: position of the batch.
    """

    def name_batches(dataset: ImageTextDataset) -> grain.MapDataset:
        names = training_order(dataset.source, seed).map(lambda index: dataset.name(index))
        return names.batch(batch_size, drop_remainder=True, batch_fn=list)

    return _mix(datasets, name_batches)[number]


def rescale_position(state: dict[str, Any], old_batch_size: int, new_batch_size: int) -> tuple[dict[str, Any], int]:
    """Converts the state of an iterator to another batch size.

    No example is repeated: if the old position is inside a new batch, the rest of that batch is skipped.

    Args:
        state: state of an iterator over batches of `old_batch_size`.
        old_batch_size: global batch size of the state.
        new_batch_size: global batch size to continue with.

    Returns:
        (state for batches of `new_batch_size`, number of skipped examples).
    """
    seen = state["next_index"] * old_batch_size
    batches = -(-seen // new_batch_size)
    return {**state, "next_index": batches}, batches * new_batch_size - seen
