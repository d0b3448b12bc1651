"""Fashion-MNIST's files as a source: images, captions, and sentences about files that are missing or damaged."""

import numpy as np
import pytest

from imagen_jax.config.load import load_config
from imagen_jax.datasets.fashion_mnist import GARMENTS, FashionMnistSource, caption_of
from imagen_jax.datasets.registry import make_source
from imagen_jax.errors import ConfigError
from tests.helpers.fashion import COUNTS, idx, write_files

COUNT = COUNTS["train"]


@pytest.fixture
def folder(tmp_path):
    return write_files(tmp_path)


def source_of(folder, **changes):
    config = load_config("configs/digits.py", {"data.source": "fashion_mnist", "data.path": str(folder), **changes})
    return make_source(config.data, "train", 32)


def test_images_and_captions(folder):
    source = source_of(folder)
    assert len(source) == COUNT
    record = source[np.int64(3)]
    assert record.image.shape == (32, 32, 1)
    assert record.image.dtype == np.uint8
    assert not record.image[:2].any() and not record.image[:, -2:].any()
    small = FashionMnistSource(str(folder), "train", 28)[3].image
    np.testing.assert_array_equal(record.image[2:-2, 2:-2], small)
    assert record.captions == source.captions(3) == ("a photo of a dress",)
    assert record.columns == {"garment": "dress"}
    fine = FashionMnistSource(str(folder), "train", 28, 16)[3].image
    np.testing.assert_array_equal(fine, small.astype(np.uint16) * 257)
    assert len(FashionMnistSource(str(folder), "test", 28)) == COUNTS["t10k"]
    assert len({caption_of(label) for label in range(10)}) == len(GARMENTS)
    assert caption_of(9) == "a photo of ankle boots"


@pytest.mark.parametrize("damage", ["missing", "cut", "text", "other array", "labels"])
def test_wrong_files(folder, damage):
    file = folder / "train-images-idx3-ubyte.gz"
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "text":
        file.write_bytes(b"not gzip")
    elif damage == "other array":
        file.write_bytes(idx(np.zeros((COUNT, 8, 8), np.uint8)))
    else:
        (folder / "train-labels-idx1-ubyte.gz").write_bytes(idx(np.full(COUNT, 10, np.uint8)))
    with pytest.raises(ConfigError, match=r"data\.path"):
        source_of(folder)


def test_wrong_arguments(folder):
    with pytest.raises(ConfigError, match="image_size"):
        FashionMnistSource(str(folder), "train", 30)
    with pytest.raises(ConfigError, match="split"):
        FashionMnistSource(str(folder), "validation", 28)
