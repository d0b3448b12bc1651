"""Random crops of `data.crop_size`."""

import numpy as np
import pytest

from imagen_jax.data.dataset import ImageTextDataset, first_examples
from imagen_jax.data.pipeline import training_batches
from imagen_jax.data.record import Record
from imagen_jax.data.transforms import crop_image
from imagen_jax.datasets.from_config import make_buckets
from tests.helpers.configs import sr_config

LENGTH, BATCH, CROP = 24, 8, (4, 5)
EPOCH = LENGTH // BATCH


def coordinate_image(index, height=9, width=8):
    """Returns an image [height, width, 3] whose pixels are (row, column, index)."""
    positions = np.moveaxis(np.indices((height, width)), 0, -1)
    return np.concatenate([positions, np.full((height, width, 1), index)], axis=-1).astype(np.uint8)


class Coordinates:
    """Record i is `coordinate_image(i)` with ten captions."""

    def __len__(self):
        return LENGTH

    def __getitem__(self, index):
        return Record(coordinate_image(index), self.captions(index), f"number {index}")

    def captions(self, index):
        return tuple(str(i) for i in range(10))


def batches(crop_size=CROP, seed=0, threads=2, rows=None):
    text = lambda caption: {"caption": np.int64(caption)}  # noqa: E731
    dataset = ImageTextDataset(Coordinates(), 3, crop_size=crop_size)
    return training_batches(dataset, text, BATCH, seed, threads, prefetch=2, rows=rows)


def take(iterator, count):
    """Returns the next batches as arrays [count, B, ...], by name."""
    collected = [next(iterator) for _ in range(count)]
    return {name: np.stack([batch[name] for batch in collected]) for name in collected[0]}


def positions_by_record(images):
    """Returns (row, column) of the upper left corner by record, from crops [..., h, w, 3]."""
    corners = images[..., 0, 0, :].reshape(-1, 3).tolist()
    return {index: (row, column) for row, column, index in corners}


def test_crops_are_parts_of_their_images():
    images = take(batches(), EPOCH)["image"].reshape(-1, *CROP, 3)
    for image in images:
        row, column, index = map(int, image[0, 0])
        np.testing.assert_array_equal(image, coordinate_image(index)[row : row + 4, column : column + 5])


def test_positions_are_uniform():
    rng, image = np.random.default_rng(0), coordinate_image(0, 6, 8)
    corners = np.array([crop_image(image, (4, 6), rng)[0, 0, :2] for _ in range(4000)])
    counts, _, _ = np.histogram2d(*corners.T, bins=3, range=((0, 3), (0, 3)))
    assert counts.sum() == 4000
    assert counts.min() > 0.8 * 4000 / 9
    assert counts.max() < 1.2 * 4000 / 9


def test_crop_of_full_size():
    image = coordinate_image(3)
    np.testing.assert_array_equal(crop_image(image, (9, 8), np.random.default_rng(0)), image)


def test_positions_depend_on_seed_and_position_alone():
    expected = take(batches(), 6)["image"]
    np.testing.assert_array_equal(take(batches(threads=5), 6)["image"], expected)
    np.testing.assert_array_equal(take(batches(rows=[6, 1]), 6)["image"], expected[:, [6, 1]])
    assert positions_by_record(take(batches(seed=1), EPOCH)["image"]) != positions_by_record(expected[:EPOCH])


@pytest.mark.parametrize("done", [1, EPOCH, EPOCH + 1])
def test_resumed_run_makes_the_same_crops(done):
    unbroken, resumed = batches(), batches(threads=3)
    take(unbroken, done)
    resumed.set_state(unbroken.get_state())
    np.testing.assert_array_equal(take(resumed, 4)["image"], take(unbroken, 4)["image"])


def test_each_epoch_has_other_crops():
    iterator = batches()
    first, second = (positions_by_record(take(iterator, EPOCH)["image"]) for _ in range(2))
    assert set(first) == set(second) == set(range(LENGTH))
    assert sum(first[index] == second[index] for index in first) < LENGTH / 2


def test_crop_size_changes_no_caption():
    np.testing.assert_array_equal(take(batches(), 6)["caption"], take(batches((0, 0)), 6)["caption"])


def test_training_crops_and_validation_does_not():
    config = sr_config(**{"data.crop_size": 8})
    datasets = make_buckets(config.data, "train", config.image_hw, config.channels)
    iterator = training_batches(datasets, lambda caption: {}, BATCH, 0, threads=2, prefetch=2)
    assert next(iterator)["image"].shape == (BATCH, 8, 8, 3)
    assert first_examples(datasets[0], 2)[0].shape == (2, 16, 16, 3)
