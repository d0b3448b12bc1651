import numpy as np
import pytest

from imagen_jax.config.load import load_config
from imagen_jax.datasets.digits import DIGIT_NAMES, TEMPLATES, DigitsSource, load_split, parse_label
from imagen_jax.datasets.registry import make_source
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import to_uint8


@pytest.mark.parametrize("split", ["train", "test"])
def test_split_has_every_digit(split):
    images, labels = load_split(split)
    assert images.shape == (len(labels), 8, 8, 1)
    assert images.dtype == np.uint8
    assert images.min() == 0 and images.max() == 255
    assert np.bincount(labels, minlength=10).min() >= 25


def test_16_bit_split_matches_8_bit():
    (images, labels), (fine, fine_labels) = load_split("test"), load_split("test", 16)
    assert fine.dtype == np.uint16
    assert fine.max() == 65535
    np.testing.assert_array_equal(labels, fine_labels)
    np.testing.assert_array_equal(to_uint8(fine), images)
    # of the 17 gray levels only black and white are exact in 8 bits
    assert set(np.unique(fine[fine % 257 == 0] // 257)) == {0, 255}
    np.testing.assert_array_equal(DigitsSource("test", 8, 16)[3].image, fine[3])


def test_splits_are_disjoint():
    train, test = load_split("train")[0], load_split("test")[0]
    assert len(train) + len(test) == 1797
    assert len(test) == 360
    train_images, test_images = ({image.tobytes() for image in images} for images in (train, test))
    assert not train_images & test_images


def test_caption_names_digit():
    source = DigitsSource("test", 8)
    images, labels = load_split("test")
    assert len(source) == len(labels)
    captions = set()
    for i in range(len(source)):
        example = source[np.int64(i)]  # as Grain asks
        np.testing.assert_array_equal(example.image, images[i])
        assert parse_label(example.captions[0]) == labels[i]
        captions.add(example.captions[0])
    assert len(captions) == len(DIGIT_NAMES) * len(TEMPLATES)


def test_parse_label_ignores_case():
    assert parse_label("A handwritten SEVEN") == 7


@pytest.mark.parametrize("caption", ["", "a fox", "one two", "someone"])
def test_parse_label_needs_one_digit(caption):
    with pytest.raises(ValueError, match=f"caption {caption!r} must name one digit"):
        parse_label(caption)


def test_invalid_digits_arguments_raise():
    with pytest.raises(ValueError, match="image_size 16 .* 8×8"):
        DigitsSource("train", 16)
    with pytest.raises(ValueError, match="image_size 8×16 .* 8×8"):
        DigitsSource("train", (8, 16))
    with pytest.raises(ValueError, match="bits 4 is not known: choose 8 or 16"):
        DigitsSource("train", 8, 4)
    with pytest.raises(ValueError, match="split 'validate'"):
        DigitsSource("validate", 8)


def test_source_from_config():
    config = load_config({"data": {"source": "digits"}}).data
    assert len(make_source(config, "test", 8)) == 360
    with pytest.raises(ConfigError, match="config.data: image_size 16"):
        make_source(config, "test", 16)
    with pytest.raises(ConfigError, match="'cats' is not known: choose one of shapes, figures, digits, fashion_mnist"):
        load_config({"data": {"source": "cats"}})
