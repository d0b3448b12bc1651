import json

import grain
import numpy as np
import pytest

from imagen_jax.data.dataset import ImageTextDataset
from imagen_jax.data.pipeline import _BatchRows, batch_record_names, rescale_position, training_batches
from imagen_jax.data.record import Record
from imagen_jax.errors import ConfigError

LENGTH = 24


class Numbered:
    """Record i is an image filled with i, with the caption "i" and optional other captions."""

    def __init__(self, length=LENGTH, dtype=np.uint8, others=()):
        self._length, self._dtype, self._others = length, dtype, others

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        return Record(np.full((2, 2, 1), index, self._dtype), self.captions(index), f"number {index}")

    def captions(self, index):
        return (str(index), *self._others)

    def __repr__(self):
        return f"Numbered({self._length})"


def text(caption):
    return {"tokens": np.asarray([int(caption), 7], np.int32), "mask": np.asarray([True, False])}


def batches(length=LENGTH, batch_size=8, seed=0, dtype=np.uint8, others=(), **position):
    examples = ImageTextDataset(Numbered(length, dtype, others), channels=1)
    return training_batches(examples, text, batch_size, seed, threads=2, prefetch=4, **position)


def indices(iterator, count):
    """Returns the caption ids of the next `count` batches, [count, B]."""
    return np.asarray([next(iterator)["tokens"][:, 0] for _ in range(count)])


def test_batch_has_matching_images_and_tokens():
    batch = next(batches())
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "image": ((8, 2, 2, 1), "uint8"),
        "tokens": ((8, 2), "int32"),
        "mask": ((8, 2), "bool"),
    }
    np.testing.assert_array_equal(batch["image"][:, 1, 0, 0], batch["tokens"][:, 0])
    np.testing.assert_array_equal(batch["mask"], [[True, False]] * 8)


def test_caption_choice_depends_on_seed_and_position():
    """The choice is uniform, the same in every run and on any number of processes, and differs between epochs."""
    options = {"length": 96, "others": ("100", "200")}
    caption_ids, all_rows = indices(batches(**options), 36), batches(**options)
    image_ids = np.asarray([next(all_rows)["image"][:, 0, 0, 0] for _ in range(36)])
    own = caption_ids == image_ids
    assert set(caption_ids[~own]) == {100, 200}
    for caption in (own, caption_ids == 100, caption_ids == 200):
        assert 60 < caption.sum() < 132
    np.testing.assert_array_equal(indices(batches(rows=[1, 6], **options), 36), caption_ids[:, [1, 6]])
    epochs = zip(np.split(image_ids.ravel(), 3), np.split(caption_ids.ravel(), 3), strict=True)
    first, second, _ = (dict(zip(*epoch, strict=True)) for epoch in epochs)
    assert first != second


def test_order_depends_on_seed():
    np.testing.assert_array_equal(indices(batches(seed=3), 6), indices(batches(seed=3), 6))
    assert not np.array_equal(indices(batches(seed=3), 6), indices(batches(seed=4), 6))


@pytest.mark.parametrize("length", [24, 2000])  # both ways of shuffling
def test_large_seeds_have_their_own_order(length):
    seeds = [3, 2**32 + 3, 2**63 + 3, 2**64 - 1]
    orders = {tuple(indices(batches(length, seed=seed, dtype=np.uint16), 6).ravel()) for seed in seeds}
    assert len(orders) == len(seeds)


@pytest.mark.parametrize("length, batch_size", [(24, 8), (20, 8), (3, 8)])
def test_epochs_are_distinct_permutations(length, batch_size):
    """Also if an epoch ends within a batch, and if a batch spans several epochs."""
    epochs = 4
    stream = indices(batches(length, batch_size), -(-epochs * length // batch_size)).ravel()[: epochs * length]
    orders = stream.reshape(epochs, length)
    for order in orders:
        assert sorted(order) == list(range(length))
    assert len({tuple(order) for order in orders}) > 1


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [4, 5, 6, 7], [1, 6], [7], range(8)], ids=str)
def test_processes_share_global_batches(rows):
    all_rows = indices(batches(), 7)
    np.testing.assert_array_equal(indices(batches(rows=rows), 7), all_rows[:, list(rows)])


def test_process_reads_only_its_rows():
    read = []
    dataset = grain.MapDataset.range(LENGTH).repeat().map(lambda number: read.append(number) or number)
    rows = _BatchRows(dataset, 8, [2, 5])
    assert [rows[i] for i in range(8)] == [2, 5, 10, 13, 18, 21, 2, 5]
    assert read == [2, 5, 10, 13, 18, 21, 2, 5]


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_restored_position_resumes_exactly(taken):
    unbroken = batches()
    indices(unbroken, taken)
    state = json.loads(json.dumps(unbroken.get_state()))  # plain enough for any checkpoint
    rest = indices(unbroken, 5)
    resumed = batches()
    indices(resumed, 2)  # wherever it stood before
    resumed.set_state(state)
    np.testing.assert_array_equal(indices(resumed, 5), rest)


def test_position_is_independent_of_process_count():
    unbroken = batches()
    indices(unbroken, 4)
    state, rest = unbroken.get_state(), indices(unbroken, 3)
    for rows in ([0, 1, 2, 3], [4, 5, 6, 7]):
        one_of_two = batches(rows=rows)
        one_of_two.set_state(state)
        np.testing.assert_array_equal(indices(one_of_two, 3), rest[:, rows])


def test_wrong_channels_raise():
    with pytest.raises(ConfigError, match=r"1 channels, config.channels is 3"):
        ImageTextDataset(Numbered(), channels=3)


def test_uint16_is_kept_and_other_dtypes_raise():
    assert next(batches(dtype=np.uint16))["image"].dtype == np.uint16
    with pytest.raises(ConfigError, match=r"float32, expected uint8 or uint16"):
        batches(dtype=np.float32)


def test_empty_source_raises():
    with pytest.raises(ConfigError, match=r"Numbered\(0\) is empty"):
        batches(length=0)


def test_batch_record_names():
    seen = indices(batches(length=20, seed=3), 6)
    examples = ImageTextDataset(Numbered(20), channels=1)
    names = [batch_record_names(examples, 8, 3, number) for number in range(6)]
    assert names == [[f"number {index}" for index in batch] for batch in seen]


@pytest.mark.parametrize("before, now, skipped", [(8, 8, 0), (8, 4, 0), (8, 12, 0), (8, 5, 1), (8, 16, 8)])
def test_rescaled_position_repeats_nothing(before, now, skipped):
    old = batches(length=200, batch_size=before)
    stream = indices(batches(length=200, batch_size=1), 80).ravel()
    seen = indices(old, 3).ravel()
    state, left_out = rescale_position(old.get_state(), before, now)
    assert left_out == skipped
    new = batches(length=200, batch_size=now)
    new.set_state(state)
    position = len(seen) + skipped
    np.testing.assert_array_equal(indices(new, 2).ravel(), stream[position : position + 2 * now])
