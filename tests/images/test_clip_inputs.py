import json

import numpy as np
import pytest
from PIL import Image

from imagen_jax.errors import ConfigError
from imagen_jax.images.clip_inputs import FILE, CLIPInputs, read_inputs
from tests.goldens.clip import cases

SIZES = [(37, 61), (61, 37), (24, 24), (24, 25), (100, 33), (9, 8)]
FILES = {
    "of today": {
        "size": {"shortest_edge": 24},
        "crop_size": {"height": 24, "width": 24},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
        "resample": 3,
    },
    "of old": {"size": 24, "crop_size": 24, "do_center_crop": True, "do_resize": True, "resample": 3},
    "bilinear": {"size": {"shortest_edge": 30}, "crop_size": {"height": 24, "width": 24}, "resample": 2},
    "squashed": {"size": {"height": 24, "width": 24}, "do_center_crop": False},
    "not normalized": {"size": 24, "crop_size": 24, "do_normalize": False},
}


def image(size, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (*size, 3)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    def write(fields):
        (tmp_path / FILE).write_text(json.dumps(fields))
        return tmp_path

    return write


@pytest.mark.parametrize("name", FILES)
def test_matches_transformers(folder, name):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    where = folder(FILES[name])
    theirs, ours = CLIPImageProcessorPil.from_pretrained(where), read_inputs(where, 24)
    images = [image(size) for size in SIZES]
    expected = theirs(images, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours(images), expected, atol=1e-6)


@pytest.mark.parametrize("name", cases.VARIANTS)
def test_matches_goldens(name):
    with np.load(cases.GOLDEN) as golden:
        expected = golden[f"{name}/pixels"]
    np.testing.assert_allclose(read_inputs(cases.HERE / name, expected.shape[1])(cases.images()), expected, atol=1e-6)


def test_defaults_are_those_of_transformers(tmp_path):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    expected = CLIPImageProcessorPil()([image((50, 70))], return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(read_inputs(tmp_path, 224)([image((50, 70))]), expected, atol=1e-6)


def test_kinds_of_images_agree():
    inputs, pixels = CLIPInputs(24, (24, 24)), image((30, 40))
    expected = inputs([pixels])
    as_float = pixels.astype(np.float32) / 127.5 - 1
    for other in (pixels[None], [Image.fromarray(pixels)], as_float[None], [pixels.astype(np.uint16) * 257]):
        np.testing.assert_array_equal(inputs(other), expected)
    gray = pixels[..., :1]
    np.testing.assert_array_equal(inputs([gray]), inputs([np.repeat(gray, 3, -1)]))


@pytest.mark.parametrize(
    "fields",
    [
        {"size": {"longest_edge": 24}},
        {"size": "24"},
        {"size": 24, "crop_size": {"height": 24}},
        {"size": 24, "crop_size": -24},
        {"size": 24, "crop_size": 24, "image_mean": [0.5]},
        {"size": 24, "crop_size": 24, "image_std": [0.5, 0, 1]},
        {"size": 24, "crop_size": 24, "resample": 77},
        {"size": 30, "crop_size": 30},
        [],
    ],
)
def test_files_that_cannot_work_are_refused(folder, fields):
    where = folder(fields)
    with pytest.raises(ConfigError, match=FILE):
        read_inputs(where, 24)


def test_images_smaller_than_the_crop_are_refused():
    with pytest.raises(ConfigError, match="smaller than the crop"):
        CLIPInputs(None, (24, 24))([image((23, 50))])
