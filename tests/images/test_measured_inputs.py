import numpy as np
import pytest
from PIL import Image

from imagen_jax.errors import ConfigError
from imagen_jax.images.measured_inputs import RESIZINGS, inception_inputs, lite0_inputs
from tests.goldens.encoders import cases


@pytest.mark.parametrize("name", RESIZINGS)
def test_resizing_matches_its_library(name):
    with np.load(cases.GOLDEN) as golden:
        expected = golden[f"inputs/{name}"]
    np.testing.assert_allclose(
        inception_inputs(cases.images(), name, cases.RESIZED), expected, atol=cases.INPUT_TOLERANCE
    )


@pytest.mark.parametrize("name", RESIZINGS)
def test_equal_sizes_are_not_resized(name):
    pixels = cases.images([(23, 31)])[0]
    scaled = pixels / 127.5 - 1 if name == "legacy_pytorch" else (pixels - 128.0) / 128
    np.testing.assert_allclose(inception_inputs([pixels], name, (23, 31))[0], scaled, atol=1e-6)


def test_networks_have_their_own_scale():
    pixels = cases.images([(23, 31)])[0]
    np.testing.assert_allclose(lite0_inputs([pixels], "clean", (23, 31))[0], (pixels - 127.0) / 128, atol=1e-6)


def test_forms_of_images_agree():
    pixels = cases.images([(40, 30)])[0]
    expected = inception_inputs(pixels[None], size=(20, 20))
    forms = [[Image.fromarray(pixels)], [pixels.astype(np.uint16) * 257], [pixels / np.float32(127.5) - 1]]
    for form in forms:
        np.testing.assert_array_equal(inception_inputs(form, size=(20, 20)), expected)
    gray = inception_inputs([pixels[..., :1]], size=(20, 20))
    np.testing.assert_array_equal(gray, np.repeat(expected[..., :1], 3, -1))


def test_what_is_not_an_image_is_refused():
    pixels = cases.images([(8, 8)])[0]
    for images in ([pixels[..., :2]], ["a.png"], [np.full((8, 8, 3), np.nan)]):
        with pytest.raises(ConfigError):
            inception_inputs(images, size=(8, 8))
    with pytest.raises(ConfigError, match="did you mean 'clean'"):
        inception_inputs([pixels], "cleam")
