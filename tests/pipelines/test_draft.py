"""Drafts: a diffusion stage starts from a VAE's images with noise, as from images that it is given."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.pipelines.draft import DRAFT_STAGE
from imagen_jax.pipelines.image_record import read_record
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.loading import TrainedStage
from imagen_jax.pipelines.request import StageStart
from imagen_jax.pipelines.sample_to_folder import sample_to_folder
from imagen_jax.stages import stage as stages
from imagen_jax.stages.stage_sampler import stage_keys
from tests.helpers.configs import base_config, one_device, perturbed_params, vae_config

PROMPTS = ["a red circle", "a blue square", "a ring"]
STEPS = 4


def pipeline(config, scale=0.1):
    stage = stages.build(config)
    return ImagenPipeline([TrainedStage(stage, perturbed_params(stage, scale), 1)], one_device())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A published VAE, another of other images, and a diffusion stage."""
    folder = tmp_path_factory.mktemp("drafts")
    for name, config in {
        "vae": vae_config(),
        "large": vae_config(**{"image_size": 16}),
        "diffusion": base_config(),
    }.items():
        pipeline(config).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def plain():
    return pipeline(base_config(**{"sampling.num_inference_steps": STEPS, "sampling.sampler": "ddim"}))


def test_it_starts_from_the_images_of_the_vae(plain, folders):
    drafted = plain.with_settings([{"draft": str(folders / "vae"), "draft_strength": 0.5}])
    steps = []
    images = drafted(PROMPTS, seed=1, callback=lambda progress: steps.append(progress.steps)).images
    assert set(steps) == {STEPS // 2}
    # the same, by hand
    pipe, request = plain.make_request(PROMPTS, seed=1)
    made = drafted._batch_requests(request, slice(0, 3), 4)(0, None)
    keys = stage_keys([1] * 4, range(4), DRAFT_STAGE, plain.mesh)
    drafts = np.asarray(drafted._draft().images(made, keys))[:3]
    np.testing.assert_array_equal(np.asarray(made.image)[:3], drafts)
    by_hand = pipe.sample_all(dataclasses.replace(request, starts=[StageStart(drafts, strength=0.5)]))[-1]
    np.testing.assert_array_equal(images, by_hand)
    assert np.any(images != plain(PROMPTS, seed=1).images)
    np.testing.assert_array_equal(images[:1], drafted(PROMPTS[:1], seed=1, batch_size=4).images)


def test_at_strength_1_the_draft_is_not_seen(plain, folders):
    drafted = plain.with_settings([{"draft": str(folders / "vae"), "draft_strength": 1.0}])
    np.testing.assert_array_equal(drafted(PROMPTS, seed=1).images, plain(PROMPTS, seed=1).images)


def test_load_draft(folders):
    pipe = pipeline(base_config(**{"sampling.num_inference_steps": STEPS}))
    before = pipe(PROMPTS, seed=1).images
    assert pipe.load_draft(folders / "vae", 0.5) is pipe
    assert np.any(pipe(PROMPTS, seed=1).images != before)
    np.testing.assert_array_equal(pipe.load_draft("")(PROMPTS, seed=1).images, before)


@pytest.mark.parametrize(
    ("name", "strength", "message"),
    [
        ("missing", 0.5, "missing"),
        ("large", 0.5, "16"),
        ("diffusion", 0.5, "sampling.draft"),
        ("vae", 0.0, "sampling.draft_strength"),
    ],
)
def test_bad_drafts_are_refused(plain, folders, name, strength, message):
    with pytest.raises(ConfigError, match=message):
        plain.load_draft(folders / name, strength)
    assert not plain.stages[0].stage.config.sampling.draft


def test_a_vae_has_no_draft(folders):
    with pytest.raises(ConfigError, match=r"sampling\.draft"):
        pipeline(vae_config())(PROMPTS, draft=str(folders / "vae"))


def test_another_draft_is_another_run(folders, tmp_path):
    """The draft's weights are in the manifest, not its folder's name alone."""
    draft, out = tmp_path / "draft", tmp_path / "out"

    def sample(vae):
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(vae, draft)
        pipe = ImagenPipeline.from_pretrained(folders / "diffusion", one_device()).load_draft(draft)
        pipe, request = pipe.make_request(PROMPTS[:1], seed=1, num_inference_steps=STEPS)
        return sample_to_folder(pipe, request, out)

    assert sample(folders / "vae").existing == 0
    described = json.loads((out / "samples.json").read_text())["stages"]["0"]["draft"]
    assert described["checkpoint"] == ImagenPipeline.from_pretrained(folders / "vae", one_device()).stages[0].checksum
    assert sample(folders / "vae").existing == 1
    pipeline(vae_config(), 0.2).save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"stages\.0\.draft\.checkpoint"):
        sample(tmp_path / "other")
    with pytest.raises(ConfigError, match="draft"):
        read_record(out / "images" / "0000.png").sampling()
