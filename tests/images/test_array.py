import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.images.array import (
    IMAGE_DTYPES,
    alpha_composite,
    format_size,
    image_dtype,
    parse_size,
    scale_size,
    to_float,
    to_uint,
    to_uint8,
)


@pytest.mark.parametrize(
    "value, size",
    [(64, (64, 64)), ((48, 64), (48, 64)), ([48, 64], (48, 64)), ((64,), (64, 64)), (np.int64(8), (8, 8))],
)
def test_parse_size(value, size):
    """As in configs, JSON and flags."""
    assert parse_size(value, "image_size") == size


@pytest.mark.parametrize("value", [64.0, "64", (1, 2, 3), (), (48, 64.5), None])
def test_invalid_size_raises(value):
    with pytest.raises(ConfigError, match=r"^config\.image_size "):
        parse_size(value, "config.image_size")


def test_format_size():
    assert (format_size((64, 64)), format_size((48, 64))) == ("64", "48×64")


def test_scale_size():
    assert scale_size((16, 24), (64, 96), (32, 48)) == (8, 12)
    assert scale_size((8, 12), (32, 48), (64, 96)) == (16, 24)


@pytest.mark.parametrize("dtype", IMAGE_DTYPES.values(), ids=str)
def test_integer_round_trip(dtype):
    highest = np.iinfo(dtype).max
    values = np.arange(highest + 1).astype(dtype)
    images = to_float(jnp.asarray(values))
    np.testing.assert_array_equal(to_uint(images, dtype), values)
    assert (images[0], images[-1]) == (-1, 1)
    assert (np.diff(images) > 0).all()


@pytest.mark.parametrize("dtype", IMAGE_DTYPES.values(), ids=str)
def test_to_uint_clips(dtype):
    highest = np.iinfo(dtype).max
    clipped = to_uint(np.array([-7.0, -1.0001, 1.0001, 9.0]), dtype)
    assert clipped.dtype == dtype
    np.testing.assert_array_equal(clipped, [0, 0, highest, highest])


def test_to_uint8():
    eight = np.arange(256, dtype=np.uint8)
    assert to_uint8(eight) is eight
    np.testing.assert_array_equal(to_uint8(eight.astype(np.uint16) * 257), eight)
    np.testing.assert_array_equal(to_uint8(np.uint16([128, 129, 65535])), [0, 1, 255])


def test_image_dtype():
    assert [image_dtype(bits, "bits").name for bits in (8, 16)] == ["uint8", "uint16"]
    with pytest.raises(ConfigError, match="config.data.bits 12"):
        image_dtype(12, "config.data.bits")


def test_alpha_composite():
    image = np.uint8([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 200, 51]]])
    np.testing.assert_array_equal(alpha_composite(image, 255)[0], [[10, 20, 30], [255] * 3, [204, 224, 244]])
    background = np.uint8([[[1, 2, 3]]])
    np.testing.assert_array_equal(alpha_composite(image, background)[0, 1], [1, 2, 3])
