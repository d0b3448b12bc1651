"""Progress, previews, cancelling, sizes and starting points of walks, and programs that are made once."""

import dataclasses

import numpy as np
import pytest

from imagen_jax import ImagenPipeline
from imagen_jax.diffusion import samplers
from imagen_jax.errors import ConfigError
from imagen_jax.stages import stage as stages
from imagen_jax.stages import stage_sampler
from imagen_jax.stages.stage_sampler import NoiseSource, StageSampler, make_request
from imagen_jax.stages.text import PromptEncoder, make_encoder
from tests.helpers.configs import base_config, one_device, perturbed_params

pytest_plugins = ("tests.helpers.fixtures",)
PROMPTS = ["a red circle", "two blue squares", "a ring"]


@pytest.fixture(scope="module")
def pipeline(base_folder, sr_folder):
    pipeline = ImagenPipeline.from_pretrained([base_folder, sr_folder], one_device())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_callback_sees_steps_and_previews(pipeline):
    seen = []

    def callback(progress):
        seen.append((progress.stage, progress.step, progress.steps, progress.first, progress.preview()))

    images = pipeline(PROMPTS, num_inference_steps=[20, 3], batch_size=2, callback=callback).stages
    steps = [(0, 8, 20), (0, 16, 20), (0, 20, 20), (1, 3, 3)]
    assert [entry[:4] for entry in seen] == [(*step, first) for first in (0, 2) for step in steps]
    for stage, step, steps, first, preview in seen:
        assert preview.dtype == np.uint8
        assert preview.shape == images[stage][first : first + 2].shape
        if step == steps:  # the last prediction is the image but for the noise of the last step
            assert np.abs(preview.astype(int) - images[stage][first : first + 2].astype(int)).mean() < 12


def test_callback_cancels(pipeline):
    class Cancelled(Exception):
        pass

    calls = []

    def callback(progress):
        calls.append(progress.step)
        if len(calls) == 2:
            raise Cancelled

    usual = pipeline(PROMPTS, num_inference_steps=20).images
    with pytest.raises(Cancelled):
        pipeline(PROMPTS, num_inference_steps=20, callback=callback)
    assert calls == [8, 16]
    np.testing.assert_array_equal(pipeline(PROMPTS, num_inference_steps=20).images, usual)


@pytest.fixture(scope="module")
def stage():
    return stages.build(base_config(**{"sampling.sampler": "ddim", "sampling.num_inference_steps": 19}))


@pytest.fixture(scope="module")
def request_of(stage):
    encoder = PromptEncoder(make_encoder(stage.config.text), one_device())
    return make_request(stage, encoder, PROMPTS, NoiseSource(3))


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_chunked_stage_walk_is_bit_exact(stage, request_of, sampler):
    params = perturbed_params(stage)
    walker = StageSampler(stage.with_sampling({"sampler": sampler}), one_device())
    unbroken = np.asarray(walker.sample(params, request_of))
    for steps in (1, 8):
        *_, last = walker.walk(params, request_of, steps_per_call=steps)
        np.testing.assert_array_equal(walker.finish(params, last.state), unbroken)


def test_start_from_a_given_z(stage, request_of):
    """At time 1, with the noise that it would draw, it is plain sampling to the bit; below, the image stays near."""
    params, walker = perturbed_params(stage), StageSampler(stage, one_device())
    plain = np.asarray(walker.sample(params, request_of))
    init_keys, _, _ = stage_sampler.split_keys(request_of.keys)
    noise = samplers.gaussian_noise(init_keys, 0, stage.image_shape)
    times = np.asarray(samplers.ddim(stage.schedule).times(19))
    again = walker.sample(params, dataclasses.replace(request_of, times=times, z=noise))
    np.testing.assert_array_equal(again, plain)
    # stopped on the way and continued
    (first,) = walker.walk(params, dataclasses.replace(request_of, times=times[:8]), steps_per_call=20)
    z = first.state.z
    continued = walker.sample(params, dataclasses.replace(request_of, times=times[7:], z=z))
    np.testing.assert_allclose(continued, plain, atol=1e-5)
    with pytest.raises(ConfigError, match="times"):
        walker.sample(params, dataclasses.replace(request_of, times=np.array([0.5, 0.7, 0.1]), z=z))


def test_no_program_is_made_twice(pipeline, base_folder, sr_folder, monkeypatch):
    """Not for other steps, scales, seeds, levels and numbers of prompts, nor when the cascade is loaded again."""
    usual = {"num_inference_steps": 2, "guidance_scale": 3.0}
    for prompts in (PROMPTS, PROMPTS[:1]):
        pipeline(prompts, **usual)
    monkeypatch.setattr(stage_sampler, "make_denoise_fn", lambda *args: pytest.fail("a program is traced again"))
    again = ImagenPipeline.from_pretrained([base_folder, sr_folder], one_device())
    again(PROMPTS[:2], **usual)
    again(PROMPTS[:1], num_inference_steps=5, guidance_scale=[2.0, 4.0], seed=9, aug_level=0.3)
    pipeline([*PROMPTS, "a cross"], num_inference_steps=30, guidance_scale=7.0)
    pipeline(PROMPTS, negative_prompt="a blue ring", **usual)


def test_sizes_of_small_batches(pipeline):
    assert [pipeline.padded_batch(count, 16) for count in (1, 2, 3, 4, 5, 8, 9, 16)] == [1, 4, 4, 4, 8, 8, 16, 16]


def test_other_sizes(pipeline):
    wide = pipeline(PROMPTS, width=32).stages
    assert [images.shape for images in wide] == [(3, 8, 16, 3), (3, 16, 32, 3)]
    np.testing.assert_array_equal(pipeline(PROMPTS, height=16, width=16).images, pipeline(PROMPTS).images)
    with pytest.raises(ConfigError, match="size 16×18"):
        pipeline(PROMPTS, width=18)
    with pytest.raises(ConfigError, match="size -16×16"):
        pipeline(PROMPTS, height=-16, width=16)
