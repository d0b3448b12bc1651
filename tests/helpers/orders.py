"""Properties of the training order that hold for every source."""

import json

import numpy as np

from imagen_jax.data.dataset import Example
from imagen_jax.data.pipeline import training_batches

EPOCHS = 2


class _IndexCaptions:
    """A data set whose captions are the indices of its examples."""

    def __init__(self, examples):
        self._examples, self.source = examples, examples.source
        self.fit, self.training_crop = examples.fit, examples.training_crop

    def __len__(self):
        return len(self._examples)

    def __getitem__(self, index):
        return Example(self._examples[index].image, (str(index),))


def assert_order_holds(examples, batch_size=4):
    """Checks that each epoch has every example once, and that batches are the same for 1, 2 and 4 processes and after a
    restart on any number of processes."""
    count = EPOCHS * len(examples) // batch_size

    def batches(rows):
        text = lambda caption: {"index": np.int64(caption)}  # noqa: E731
        return training_batches(_IndexCaptions(examples), text, batch_size, 0, threads=2, prefetch=2, rows=rows)

    def take(iterator, count):
        collected = [next(iterator) for _ in range(count)]
        return {name: np.stack([batch[name] for batch in collected], 0) for name in ("index", "image")}

    expected = take(batches(range(batch_size)), count)
    epoch = expected["index"].ravel()[: len(examples)]
    assert sorted(epoch) == list(range(len(examples))), "an epoch has each example once"
    for processes in (2, 4):
        parts = [range(p, batch_size, processes) for p in range(processes)]
        done = count // 2
        for rows in parts:
            iterator = batches(rows)
            first, position = take(iterator, done), json.loads(json.dumps(iterator.get_state()))
            restarted = batches(rows)
            restarted.set_state(position)
            rest = take(restarted, count - done)
            for name, full in expected.items():
                np.testing.assert_array_equal(np.concatenate([first[name], rest[name]]), full[:, list(rows)])
    other = batches(range(batch_size))
    other.set_state(position)
    np.testing.assert_array_equal(take(other, count - done)["index"], expected["index"][done:])
