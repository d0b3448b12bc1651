"""Seeds for each image, and images that do not depend on their batch."""

import numpy as np
import pytest

from imagen_jax.diffusion.keys import key_from_seed, keys_from_seeds
from imagen_jax.errors import ConfigError
from imagen_jax.pipelines import image_record
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.request import SampleRequest
from imagen_jax.pipelines.sample_to_folder import sample_to_folder
from imagen_jax.pipelines.texts import Texts
from tests.helpers.configs import eight_devices, one_device

pytest_plugins = ("tests.helpers.fixtures",)
PROMPTS = ["a red circle", "a ring", "two blue squares above a ring", "a ring", ""]
SEEDS = [7, 2**64 - 1, 0, 7, 2**32]


def pipeline(folder, mesh):
    cascade = ImagenPipeline.from_pretrained([folder], mesh)
    cascade.set_progress_bar_config(disable=True)
    return cascade


@pytest.fixture(scope="module")
def cascade(base_folder):
    return pipeline(base_folder, one_device())


@pytest.fixture(scope="module")
def alone(cascade):
    """Each image, sampled by itself."""
    return np.concatenate([cascade(prompt, seed=seed).images for prompt, seed in zip(PROMPTS, SEEDS, strict=True)])


def test_keys_are_those_of_each_seed():
    for seed, key in zip(SEEDS, keys_from_seeds(SEEDS), strict=True):
        assert key == key_from_seed(seed)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_isolated_images_are_those_sampled_alone(cascade, alone, batch_size):
    order = [3, 1, 4, 0, 2]
    request = SampleRequest(
        Texts([PROMPTS[i] for i in order]), [SEEDS[i] for i in order], batch_size, isolated=True, steps_per_call=1
    )
    np.testing.assert_array_equal(cascade.sample_all(request)[-1], alone[order])


def test_images_of_a_batch_are_those_sampled_alone_up_to_rounding(cascade, alone):
    images = cascade(PROMPTS, seed=SEEDS, batch_size=4).images
    assert np.abs(images.astype(int) - alone).max() <= 1


def test_isolated_images_on_several_devices(base_folder):
    """Each device computes its own, one after the other: a change of places changes nothing."""
    cascade = pipeline(base_folder, eight_devices())
    prompts, seeds = PROMPTS * 4, list(range(20))
    images = cascade.sample_all(SampleRequest(Texts(prompts), seeds, 16, isolated=True))[-1]
    order = np.random.default_rng(0).permutation(20)
    moved = SampleRequest(Texts([prompts[i] for i in order]), [seeds[i] for i in order], 8, isolated=True)
    np.testing.assert_array_equal(cascade.sample_all(moved)[-1], images[order])


def test_files_say_the_seed_of_each_image(cascade, tmp_path):
    for isolated in (False, True):
        request = SampleRequest(Texts(PROMPTS), SEEDS, 4, isolated=isolated)
        out = tmp_path / str(isolated)
        sample_to_folder(cascade, request, out)
        for position, seed in enumerate(SEEDS):
            path = out / "images" / f"{position:04d}.png"
            record = image_record.read_record(path)
            assert (record.seed, record.index, record.prompt) == (seed, 0, PROMPTS[position])
            sample_to_folder(cascade, image_record.like_request(record), out / path.stem)
            assert (out / path.stem / "images" / "0000.png").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("seeds", [[1], [1, 2, 3], [1, -1], [1, "x"], [1, True], "12"])
def test_wrong_seeds(cascade, seeds):
    with pytest.raises(ConfigError, match="seed"):
        cascade(["a ring", "a ring"], seed=seeds)
