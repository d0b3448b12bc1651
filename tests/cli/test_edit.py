"""`imagen edit`: every task from files into a folder."""

import json

import numpy as np
import pytest
from PIL import Image

from imagen_jax.datasets.shapes.render import render
from imagen_jax.datasets.shapes.scenes import Scene, SceneObject
from imagen_jax.images.grid import read_png
from tests.helpers.cli import run_command
from tests.helpers.configs import contents

QUICK = ("--stages=shapes", "--num_inference_steps=4,2")
PROMPT = "--prompts=a red circle on a gray background"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    image = render(Scene((SceneObject("circle", "red", "large", 0.4, 0.5, 0.21),), "gray"), 64)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    Image.fromarray(image).save(folder / "image.png")
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


def edit(files, out, task, *arguments):
    command = ["edit", f"--task={task}", *QUICK, *arguments, f"--out={out}"]
    if task != "interpolate":
        command.append(f"--image={files / 'image.png'}")
    assert run_command(*command) == 0
    return [read_png(path) for path in sorted((out / "images").iterdir())]


def test_inpaint(files, tmp_path):
    (result,) = edit(files, tmp_path / "out", "inpaint", f"--mask={files / 'mask.png'}", PROMPT, "--resample=2")
    image = read_png(files / "image.png")
    np.testing.assert_array_equal(result[:, 32:], image[:, 32:])
    assert np.any(result != image)
    about = json.loads((tmp_path / "out/samples.json").read_text())["edit"]
    assert (about["task"], about["resample"], len(about["image"])) == ("inpaint", 2, 64)
    assert (tmp_path / "out/samples.png").exists()


def test_image_to_image(files, tmp_path):
    images = edit(files, tmp_path / "a", "image_to_image", f"{PROMPT}; a blue circle", "--strength=0.5,0.2", "--seed=3")
    assert len(images) == 2
    (same,) = edit(files, tmp_path / "b", "image_to_image", PROMPT, "--strength=0")
    np.testing.assert_array_equal(same, read_png(files / "image.png"))


@pytest.mark.slow
def test_other_tasks(files, tmp_path):
    (wide,) = edit(files, tmp_path / "outpaint", "outpaint", PROMPT, "--canvas=64x96", "--position=0x32")
    np.testing.assert_array_equal(wide[:, 32:], read_png(files / "image.png"))
    assert len(edit(files, tmp_path / "variations", "variations", "--count=3", "--strength=0.4")) == 3
    assert edit(files, tmp_path / "upscale", "upscale", PROMPT)[0].shape == (128, 128, 3)
    assert len(edit(files, tmp_path / "seeds", "interpolate", "--ends=3;4", PROMPT, "--count=2", "--sampler=ddim")) == 2
    (again,) = edit(files, tmp_path / "invert", "invert", PROMPT)
    assert np.abs(again.astype(int) - read_png(files / "image.png")).max() <= 1
    assert (tmp_path / "invert/inversion.npz").exists()


def test_interpolation_between_files_is_of_their_pixels(files, tmp_path):
    """A file that changes under its name makes another edit."""
    Image.fromarray(255 - read_png(files / "image.png")).save(files / "other.png")
    ends = f"--ends={files / 'image.png'};{files / 'other.png'}"
    arguments = ("edit", "--task=interpolate", *QUICK, PROMPT, ends, "--count=2", f"--out={tmp_path / 'out'}")
    assert run_command(*arguments) == 0
    assert len(set(json.loads((tmp_path / "out/samples.json").read_text())["edit"]["ends"])) == 2
    Image.fromarray(read_png(files / "image.png")[:, ::-1]).save(files / "other.png")
    assert run_command(*arguments) == 2


def test_edit_by_a_changed_prompt(files, tmp_path):
    source = "--source_prompt=a red circle on a gray background"
    images = edit(
        files, tmp_path, "edit", source, "--prompts=a red circle on a gray background; a blue circle", "--seed=3"
    )
    np.testing.assert_array_equal(images[0], read_png(files / "image.png"))
    assert np.any(images[1] != images[0])


def test_another_edit_is_not_mixed_in(files, tmp_path):
    out = tmp_path / "out"
    edit(files, out, "image_to_image", PROMPT, "--strength=0")
    before = contents(out)
    command = ("edit", "--task=image_to_image", *QUICK, PROMPT, f"--image={files / 'image.png'}", f"--out={out}")
    assert run_command(*command, "--strength=0.1") == 2
    assert contents(out) == before
    assert run_command(*command, "--strength=0.1", "--overwrite") == 0
    assert contents(out) != before


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--task is missing"),
        (["--task=paint"], "'paint' is not known"),
        (["--task=inpaint", "--image=IMAGE", PROMPT], "--mask is missing"),
        (["--task=upscale", "--image=IMAGE", PROMPT, "--strength=1"], "--strength has no effect"),
        (["--task=image_to_image", "--image=IMAGE", PROMPT, "--strength=2"], "strength 2.0 is not in"),
        (["--task=image_to_image", "--image=IMAGE", PROMPT, "--strength=much"], "--strength 'much'"),
        (["--task=image_to_image", "--image=nowhere.png", PROMPT], "cannot be read"),
        (["--task=image_to_image", "--image=MASK", PROMPT], "mode L, not RGB"),
        (["--task=inpaint", "--image=IMAGE", "--mask=SMALL", PROMPT], "32×64 pixels and image 64×64"),
        (["--task=outpaint", "--image=IMAGE", "--canvas=big", PROMPT], "--canvas 'big'"),
        (["--task=interpolate", "--ends=3", PROMPT], "are not two"),
        (["--task=interpolate", "--ends=IMAGE;lost.png", PROMPT], "--ends 'lost.png' cannot be read"),
    ],
    ids=str,
)
def test_wrong_use_is_one_sentence(files, tmp_path, capsys, arguments, message):
    Image.fromarray(np.eye(32, 64, dtype=np.uint8) * 255).save(files / "small.png")
    names = {"IMAGE": "image.png", "MASK": "mask.png", "SMALL": "small.png"}
    for name, file in names.items():
        arguments = [argument.replace(name, str(files / file)) for argument in arguments]
    assert run_command("edit", *QUICK, *arguments, f"--out={tmp_path / 'out'}") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error
    assert not list(tmp_path.glob("out/images/*"))
