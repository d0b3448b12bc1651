"""Maps of objects: from arrays and files, cropped and mirrored with their images."""

import io

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data.dataset import ImageTextDataset
from imagen_jax.data.object_maps import read_object_map
from imagen_jax.data.pipeline import training_batches
from imagen_jax.data.record import CorruptRecordError, Record
from imagen_jax.datasets.from_config import make_buckets, make_examples
from imagen_jax.errors import ConfigError
from tests.helpers.configs import as_written


def png(array, mode=None):
    stream = io.BytesIO()
    Image.fromarray(array, mode).save(stream, "PNG")
    return stream.getvalue()


class Numbered:
    """Record i has an image [9, 8, 3] whose first channel is also the map of its objects."""

    def __init__(self, encoded=False):
        self._encoded = encoded

    def __len__(self):
        return 8

    def __getitem__(self, index):
        rng = np.random.default_rng(int(index))
        return Record(rng.integers(1, 256, (9, 8, 3), dtype=np.uint8), ("a",), f"number {index}")

    def captions(self, index):
        return ("a",)

    def objects(self, index):
        objects = self[index].image[..., 0]
        return png(objects) if self._encoded else objects


def text(caption):
    return {"caption": np.int64(len(caption))}


@pytest.mark.parametrize("encoded", [False, True])
def test_map_is_cropped_with_its_image(encoded):
    dataset = ImageTextDataset(Numbered(encoded), 3, crop_size=(4, 5), objects=True)
    batches = training_batches(dataset, text, 4, seed=0, threads=1, prefetch=1)
    for _ in range(4):
        batch = next(batches)
        assert batch["image"].shape == (4, 4, 5, 3)
        np.testing.assert_array_equal(batch["objects"], batch["image"][..., :1])


def test_no_maps_are_read_unless_asked_for():
    batches = training_batches(ImageTextDataset(Numbered(), 3), text, 4, seed=0, threads=1, prefetch=1)
    assert set(next(batches)) == {"image", "caption"}


def put(folder, count=6):
    """Writes images 12×8 with a left half of number 3, in maps of twice their size."""
    rng = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(rng.integers(256, size=(8, 12, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("a fox")
        objects = np.zeros((16, 24), np.uint8)
        objects[:, :12] = 3
        (folder / f"{index}.objects.png").write_bytes(png(objects))


def data_of(folder, **changes):
    values = {"path": str(folder), "objects_suffix": ".objects.png", "max_corrupt": 0.0}
    return as_written("folder_base.py", "tiny").data.with_changes(values | changes)


def test_folder_has_maps_beside_its_images(tmp_path):
    put(tmp_path)
    data = data_of(tmp_path, **{"transform.flip": True, "transform.crop": "random"})
    for examples in [make_examples(data, "all", 8, 3, objects=True), *make_buckets(data, "all", 8, 3, objects=True)]:
        assert len(examples) == 6
        batch = next(training_batches(examples, text, 6, seed=1, threads=1, prefetch=1))
        objects = batch["objects"][..., 0]
        assert set(np.unique(objects)) == {0, 3}
        assert (objects == objects[:, :1]).all()
        # half of them are mirrored
        assert 0 < (objects[:, 0, 0] == 3).sum() < 6
    assert len(make_examples(data_of(tmp_path, objects_suffix=""), "all", 8, 3)) == 12


def test_map_without_an_image_is_named(tmp_path, caplog):
    put(tmp_path)
    (tmp_path / "lost.objects.png").write_bytes(png(np.ones((4, 4), np.uint8)))
    make_examples(data_of(tmp_path), "all", 8, 3)
    assert "map(s) of objects not used" in caplog.text
    assert "lost.objects.png" in caplog.text


def test_data_without_objects_are_refused(tmp_path):
    put(tmp_path)
    for path in tmp_path.glob("*.objects.png"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"none of the first 6 examples of FolderSource.*data\.objects_suffix"):
        make_examples(data_of(tmp_path), "all", 8, 3, objects=True)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png(np.zeros((9, 8, 3), np.uint8)), "mode RGB, expected one channel"),
        (png(np.zeros((9, 16), np.uint8)), "9×16 and its image, resized, 9×8: another aspect ratio"),
        (png(np.zeros((9, 8), np.uint8))[:40], "map of objects of number 0"),
        (b"", "map of objects of number 0"),
    ],
)
def test_bad_map_is_a_corrupt_record(data, reason):
    source = Numbered()
    source.objects = lambda index: data
    with pytest.raises(CorruptRecordError, match=reason):
        read_object_map(source, 0, "number 0", (9, 8))


def test_images_of_other_aspects_may_have_the_objects(tmp_path):
    """The first image has none, and another form."""
    put(tmp_path)
    Image.fromarray(np.zeros((30, 8, 3), np.uint8)).save(tmp_path / "!.png")
    (tmp_path / "!.txt").write_text("a pole")
    examples = make_examples(data_of(tmp_path), "all", 8, 3, objects=True)
    assert [bool(examples[index].objects.any()) for index in range(3)] == [False, True, True]


def test_a_map_costs_no_second_reading_of_its_image():
    class Counted(Numbered):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

        def objects(self, index):
            return png(Numbered()[index].image[..., 0])

    source = Counted()
    examples = ImageTextDataset(source, 3, objects=True)
    before = source.reads
    examples[3]
    assert source.reads == before + 1
