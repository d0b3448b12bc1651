"""Stage folders of earlier versions still sample the same images and resume to the same parameters."""

import shutil

import jax
import numpy as np
import pytest

from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.stages.sampling import SAMPLING_MESH
from imagen_jax.stages.stage_sampler import NoiseSource, StageSampler, make_request
from imagen_jax.stages.text import PromptEncoder, make_encoder
from imagen_jax.stages.workdir import read_config
from imagen_jax.training.loop import train
from tests.helpers.configs import eight_devices, restored
from tests.helpers.old_stages import extract_old_stages

PROMPTS = (
    "a red circle",
    "two blue squares",
    "a large green ring on a white background",
    "a small yellow cross above a black triangle",
)
SEED, LAST_STEP = 7, 6
# on the machine that wrote the fixture, results are bit-exact; other CPUs round differently
ROUNDING = 1e-5


@pytest.fixture
def folder(tmp_path):
    return extract_old_stages(tmp_path)


def test_sample_the_same_images(folder):
    cascade = ImagenPipeline.from_pretrained([folder / "base", folder / "sr"], make_mesh(SAMPLING_MESH))
    with np.load(folder / "images.npz") as expected:
        images = {"base": cascade(PROMPTS, seed=SEED, batch_size=len(PROMPTS)).stages[0]}
        # from the base images in 8 bits, as that version passed them on
        sr = cascade.stages[1]
        encoder = PromptEncoder(make_encoder(sr.stage.config.text), cascade.mesh)
        request = make_request(sr.stage, encoder, PROMPTS, NoiseSource(SEED, stage_index=1), expected["base"])
        images["sr"] = StageSampler(sr.stage, cascade.mesh).sample_uint(sr.params, request, len(PROMPTS))
        for name, image in images.items():
            difference = np.abs(image.astype(int) - expected[name].astype(int))
            assert difference.max() <= 1
            assert difference.mean() < 0.01


@pytest.mark.parametrize("name", ["base", pytest.param("sr", marks=pytest.mark.slow)])
def test_resume_to_the_same_parameters(folder, name):
    config = read_config(folder / name)
    expected, expected_position = restored(folder / name, config, eight_devices())
    shutil.rmtree(folder / name / "checkpoints" / str(LAST_STEP))
    train(config, folder / name)
    state, position = restored(folder / name, config, eight_devices())
    assert int(state.step) == LAST_STEP
    assert position == expected_position
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=ROUNDING, atol=ROUNDING), state, expected)
