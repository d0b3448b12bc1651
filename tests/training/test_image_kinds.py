"""Pictures that are not square, of 1, 3 and 4 channels, of 8 and 16 bits: from the data to the files of a command."""

import numpy as np
import pytest
from PIL import Image

from imagen_jax.cli import sample
from imagen_jax.cli.flags import CommandFlags
from imagen_jax.datasets.registry import make_source
from imagen_jax.evaluation.judges import get_judge
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.training.loop import train
from tests.helpers.configs import as_written, config_of, eight_devices

PROMPTS = ["a red circle", "two blue squares", "a ring"]
SHORT = {
    "training.steps": 2,
    "training.save_every": 2,
    "training.preview_every": 2,
    # quick to compile
    "model.num_res_blocks": (0,),
    "model.attention_types": ((),),
    "model.middle_attention_types": ("text",),
}


def trained(folder, file, variant):
    train(config_of(file, variant, **SHORT), folder)
    return folder


def drawn(folders, out, *arguments):
    """(format, mode, pixels) of the pictures of the prompts, and the grid's pixels."""
    stages, prompts = ",".join(map(str, folders)), ";".join(PROMPTS)
    args = CommandFlags(sample)
    args.parse([f"--stages={stages}", f"--prompts={prompts}", f"--out={out}", *arguments])
    sample.run(args)
    pictures = []
    for index in range(len(PROMPTS)):
        with Image.open(out / "images" / f"{index:04d}.png") as image:
            pictures.append((image.format, image.mode, np.asarray(image)))
    with Image.open(out / "samples.png") as grid:
        return pictures, np.asarray(grid.convert("RGB"))


def preview(folder):
    with Image.open(folder / "previews" / "00000002.png") as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Both stages of a cascade of pictures that are not square."""
    folder = tmp_path_factory.mktemp("wide")
    return [trained(folder / file, f"shapes_{file}.py", "wide") for file in ("base", "sr")]


@pytest.mark.slow
def test_wide_pictures(wide, tmp_path):
    pictures, grid = drawn(wide, tmp_path)
    for form, mode, pixels in pictures:
        assert (form, mode, pixels.shape) == ("PNG", "RGB", (64, 96, 3))
        assert pixels.std() > 5
    assert grid.std() > 10
    for folder in wide:
        assert preview(folder).std() > 10


@pytest.mark.slow
def test_wide_pictures_are_scored(wide):
    cascade = ImagenPipeline.from_pretrained(wide, eight_devices())
    images = cascade(PROMPTS, batch_size=3).images
    scores, correct = get_judge("shapes")(images, PROMPTS)
    assert (scores["all"]["total"], correct.shape) == (3, (3,))
    source = make_source(as_written("shapes_base.py", "wide").data, "held_out", cascade.image_size)
    assert source[0].image.shape == images.shape[1:]


@pytest.mark.slow
def test_pictures_with_transparency(tmp_path):
    folder = trained(tmp_path / "stage", "shapes_base.py", "transparent")
    pictures, grid = drawn([folder], tmp_path / "out")
    for form, mode, pixels in pictures:
        assert (form, mode, pixels.shape) == ("PNG", "RGBA", (32, 32, 4))
        assert pixels[..., 3].std() > 5
    assert grid.std() > 10
    assert preview(folder).std() > 10


@pytest.mark.slow
def test_gray_pictures_of_16_bits(tmp_path):
    folder = trained(tmp_path / "stage", "digits.py", "sixteen_bit")
    pictures, grid = drawn([folder], tmp_path / "out")
    for form, mode, pixels in pictures:
        assert (form, mode, pixels.shape) == ("PNG", "I;16", (8, 8))
        # not numbers of 8 bits, made longer
        assert (pixels % 257 > 0).sum() > 32
    assert grid.std() > 10
    assert preview(folder).std() > 10
    rounded, _ = drawn([folder], tmp_path / "rounded", "--bits=8")
    for (_, mode, pixels), (*_, fine) in zip(rounded, pictures, strict=True):
        assert (mode, pixels.shape) == ("L", (8, 8))
        np.testing.assert_allclose(pixels, fine / 257, atol=0.6)
