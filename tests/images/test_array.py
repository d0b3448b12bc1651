import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.images.array import DTYPES, composite, dtype_of, said, scaled, size_of, to_8_bits, to_float, to_whole


@pytest.mark.parametrize(
    "value, size",
    [(64, (64, 64)), ((48, 64), (48, 64)), ([48, 64], (48, 64)), ((64,), (64, 64)), (np.int64(8), (8, 8))],
)
def test_sizes_are_one_number_or_two(value, size):
    """As configs say them, as JSON gives them, as a flag gives one number to a pair."""
    assert size_of(value, "image_size") == size


@pytest.mark.parametrize("value", [64.0, "64", (1, 2, 3), (), (48, 64.5), None])
def test_what_is_no_size_is_refused_with_its_name(value):
    with pytest.raises(ConfigError, match=r"^config\.image_size .* is not a whole number, for a square, nor a pair"):
        size_of(value, "config.image_size")


def test_a_size_is_said_as_short_as_it_can_be():
    assert (said((64, 64)), said((48, 64))) == ("64", "48×64")


def test_a_part_is_scaled_as_its_whole():
    assert scaled((16, 24), (64, 96), (32, 48)) == (8, 12)
    assert scaled((8, 12), (32, 48), (64, 96)) == (16, 24)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_whole_number_survives_the_way_in_and_out(dtype):
    highest = np.iinfo(dtype).max
    values = np.arange(highest + 1).astype(dtype)
    images = to_float(jnp.asarray(values))
    np.testing.assert_array_equal(to_whole(images, dtype), values)
    assert (images[0], images[-1]) == (-1, 1)
    assert (np.diff(images) > 0).all()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_values_outside_the_range_are_clipped(dtype):
    highest = np.iinfo(dtype).max
    found = to_whole(np.array([-7.0, -1.0001, 1.0001, 9.0]), dtype)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, [0, 0, highest, highest])


def test_16_bits_are_rounded_to_8():
    eight = np.arange(256, dtype=np.uint8)
    assert to_8_bits(eight) is eight
    np.testing.assert_array_equal(to_8_bits(eight.astype(np.uint16) * 257), eight)
    np.testing.assert_array_equal(to_8_bits(np.uint16([128, 129, 65535])), [0, 1, 255])


def test_other_bits_are_refused():
    assert [dtype_of(bits, "bits").name for bits in (8, 16)] == ["uint8", "uint16"]
    with pytest.raises(ConfigError, match="config.data.bits 12 is not known: choose 8 or 16"):
        dtype_of(12, "config.data.bits")


def test_what_is_transparent_shows_the_ground():
    image = np.uint8([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 200, 51]]])
    np.testing.assert_array_equal(composite(image, 255)[0], [[10, 20, 30], [255] * 3, [204, 224, 244]])
    ground = np.uint8([[[1, 2, 3]]])
    np.testing.assert_array_equal(composite(image, ground)[0, 1], [1, 2, 3])
