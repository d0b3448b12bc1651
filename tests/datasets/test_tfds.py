"""TFDS data sets, prepared and read without TensorFlow, which is not installed."""

import importlib.util
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from imagen_jax.data.dataset import ImageTextDataset
from imagen_jax.data.record import CorruptRecordError
from imagen_jax.data.transforms import Transform
from imagen_jax.datasets.builders.digits import Digits
from imagen_jax.datasets.digits import DIGIT_NAMES, load_split
from imagen_jax.datasets.tfds import TfdsSource
from imagen_jax.errors import ConfigError
from imagen_jax.images import png
from tests.helpers.orders import assert_order_holds

COUNT = 12
CLASSES = ("hot_dog", "tea")


def picture(i):
    return np.full((4, 6, 3), i, np.uint8)


class Photos(tfds.core.GeneratorBasedBuilder):
    """Has the structure of coco_captions, plus labels and boxes; example i has i % 3 captions."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        words = {"text": np.str_, "id": np.int64}
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "image/filename": tfds.features.Text(),
            "captions": tfds.features.Sequence(words),
            "objects": tfds.features.Sequence({"bbox": tfds.features.BBoxFeature()}),
            "label": tfds.features.ClassLabel(names=list(CLASSES)),
            "height": tfds.features.Scalar(np.int32),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(range(COUNT)), "val": self._generate_examples(range(COUNT, COUNT + 3))}

    def _generate_examples(self, which):
        for i in which:
            yield (
                i,
                {
                    "image": png.encode(picture(i)),
                    "image/filename": f"{i}.png",
                    "captions": [{"text": f"picture {i} – {j}", "id": j} for j in range(i % 3)],
                    "objects": [{"bbox": tfds.features.BBox(0.0, 0.0, 0.5, 0.5)}] * (i % 2),
                    "label": i % 2 if i % 5 else -1,
                    "height": 4,
                },
            )


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """The folder of the data set, which contains its version."""
    folder = tmp_path_factory.mktemp("data")
    Photos(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder / "photos"


@pytest.fixture
def copied(photos, tmp_path):
    """The folder of a version that a test may damage."""
    return shutil.copytree(photos / "1.0.0", tmp_path / "1.0.0")


def source_of(folder, split="train", image="image", captions=("captions/text",), templates=("{}",)):
    return TfdsSource(str(folder), split, image, captions, templates)


def shard_of(folder, split):
    return next(path for path in folder.iterdir() if f"-{split}.array_record" in path.name)


def test_tensorflow_is_not_imported():
    assert importlib.util.find_spec("tensorflow") is None


def test_examples_have_captions_and_encoded_image(photos):
    source = source_of(photos)
    assert len(source) == COUNT
    for i in range(COUNT):
        record = source[i]
        assert record.image == png.encode(picture(i))
        assert record.captions == tuple(f"picture {i} – {j}" for j in range(i % 3)) == source.captions(i)
        assert record.name == f"photos/1.0.0 train[{i}]"
    with pytest.raises(IndexError, match="index 12 is outside"):
        source[COUNT]


def test_columns_from_features(photos):
    assert source_of(photos)[1].columns == {"image/filename": "1.png", "label": "tea", "height": "4"}
    assert source_of(photos)[5].columns == {"image/filename": "5.png", "label": "", "height": "4"}


def test_columns_do_not_decode_images(photos):
    source = source_of(photos)
    assert [source.columns(i) for i in range(COUNT)] == [source[i].columns for i in range(COUNT)]
    with pytest.raises(IndexError, match="index 12 is outside"):
        source.columns(COUNT)


def test_captions_from_templates(photos):
    source = source_of(photos, captions=("label",), templates=("a photo of a {}", "{}"))
    assert source[2].captions == ("a photo of a hot dog", "hot dog")
    assert source.captions(3) == ("a photo of a tea", "tea")
    assert source[5].captions == ()


def test_no_caption_features(photos):
    source = source_of(photos, captions=())
    assert source[2].captions == source.captions(2) == ()


def test_split_syntax(photos):
    source = source_of(photos, "train[2:4]+val")
    assert [source.captions(i) for i in range(len(source))] == [
        *(source_of(photos).captions(i) for i in (2, 3)),
        *(source_of(photos, "val").captions(i) for i in range(3)),
    ]


def test_newest_version_by_folder_or_name(photos, tmp_path, monkeypatch):
    shutil.copytree(photos, tmp_path / "photos")
    for version in ("1.2.0", "1.10.0"):
        folder = shutil.copytree(photos / "1.0.0", tmp_path / "photos" / version)
        info = folder / "dataset_info.json"
        info.write_text(json.dumps({**json.loads(info.read_text()), "version": version}))
    assert source_of(tmp_path / "photos")[0].name.startswith("photos/1.10.0")
    assert source_of(tmp_path / "photos" / "1.2.0")[0].name.startswith("photos/1.2.0")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert source_of("photos")[0].name.startswith("photos/1.10.0")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"split": "trian"}, r"split 'trian' of .* is not known or empty: .*train \(12 examples\), val \(3 ex"),
        ({"split": "train[4:4]"}, "is not known or empty"),
        ({"split": "train["}, "is not known or empty"),
        ({"image": "picture"}, "feature 'picture' of .* does not exist: choose one of image"),
        ({"image": "label"}, "feature 'label' of .* is not an image but ClassLabel: choose one of image"),
        (
            {"captions": ("captions",)},
            "feature 'captions' of .* does not exist: choose one of captions/text, image/filename, label",
        ),
        (
            {"captions": ("captions/id",)},
            "is not a text or a class but Tensor: choose one of captions/text, image/filename, label",
        ),
        ({"templates": ("a photo",)}, "template 'a photo' has no {}"),
    ],
    ids=str,
)
def test_unknown_split_or_feature_raises(photos, changes, message):
    with pytest.raises(ConfigError, match=message):
        source_of(photos, **changes)


def test_missing_dataset_lists_others(photos, tmp_path):
    with pytest.raises(ConfigError, match=rf"no prepared data set in {photos.parent}: choose one of {photos}$"):
        source_of(photos.parent)
    with pytest.raises(ConfigError, match=r"no prepared data set in .*: prepare it with `imagen prepare`"):
        source_of(tmp_path)


def test_other_file_format_raises(copied):
    info = copied / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(ConfigError, match="has tfrecord files.*file_format='array_record'"):
        source_of(copied)


def test_damaged_description_raises(copied):
    (copied / "dataset_info.json").write_text("{")
    with pytest.raises(ConfigError, match="the description of the data set in .* cannot be read"):
        source_of(copied)


def test_missing_file_raises(copied):
    shard = shard_of(copied, "val")
    shard.unlink()
    source_of(copied)  # the other split is whole
    with pytest.raises(ConfigError, match=f"1 of 1 files of split 'val' are missing, the first is {shard}"):
        source_of(copied, "val")


def test_truncated_file_is_corrupt(copied):
    shard = shard_of(copied, "val")
    os.truncate(shard, shard.stat().st_size // 2)
    source = source_of(copied, "train[:1]+val")
    assert source[0].image == png.encode(picture(0))
    for read in (source.__getitem__, source.captions, source.columns):
        with pytest.raises(
            CorruptRecordError, match=rf"photos/1\.0\.0 .*\[2\]: {shard} is truncated or damaged"
        ) as error:
            read(2)
    assert "\n" not in str(error.value)


def test_file_truncated_to_first_blocks_is_corrupt(copied):
    """The reader then returns no bytes for an example, and TFDS None for each feature."""
    shard = shard_of(copied, "val")
    os.truncate(shard, 2**16)
    for captions in (("label",), ("image/filename",)):
        source = source_of(copied, "val", captions=captions)
        for read in (source.__getitem__, source.captions, source.columns):
            with pytest.raises(CorruptRecordError, match=f"{shard} is truncated or damaged"):
                read(0)


def test_tfds_training_order(photos):
    transform = Transform((4, 4), 3, 8, crop="random", flip=True, background=0, upscale=False, max_pixels=1000)
    assert_order_holds(ImageTextDataset(source_of(photos), 3, transform))


def test_digits_builder_matches_sklearn(tmp_path):
    Digits(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    for split in ("train", "test"):
        source = source_of(tmp_path / "digits", split, captions=("label",), templates=("the digit {}",))
        images, labels = load_split(split)
        assert len(source) == len(images)
        for i in range(0, len(images), 100):
            assert source[i].image == png.encode(images[i])
            assert source[i].captions == (f"the digit {DIGIT_NAMES[labels[i]]}",)
