"""VAEs in a cascade: as the base of diffusion, as super-resolution, and images that they encode."""

import functools

import jax
import numpy as np
import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.pipelines.editor import ImagenEditor
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.loading import TrainedStage
from imagen_jax.stages import stage as stages
from tests.helpers.configs import eight_devices, one_device, perturbed_params, sr_config, vae_config, vae_sr_config

PROMPTS = ["a red circle", "a blue square", "a ring"]


@functools.cache
def trained(config):
    stage = stages.build(config)
    return TrainedStage(stage, perturbed_params(stage), 1, None)


def pipeline(*configs, mesh=None):
    return ImagenPipeline([trained(config) for config in configs], mesh or one_device())


@functools.cache
def vae():
    return pipeline(vae_config())


@functools.cache
def cascade():
    return pipeline(vae_config(), sr_config())


def test_samples_depend_on_seed_prompt_and_temperature():
    images = vae()(PROMPTS, seed=1).images
    assert images.shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(images, vae()(PROMPTS, seed=1).images)
    assert np.any(images != vae()(PROMPTS, seed=2).images)
    assert np.any(images != vae()(["a cross"] * 3, seed=1).images)
    assert np.any(images != vae()(PROMPTS, seed=1, sample_pixels=True).images)
    # at 0 the mode of the prior: seeds do not matter; and neither prompts, without text
    cold = [
        vae()(PROMPTS, seed=seed, temperature=0.0, guidance_scale=scale).images
        for seed, scale in ((1, 1.0), (2, 1.0), (1, 0.0))
    ]
    np.testing.assert_array_equal(cold[0], cold[1])
    np.testing.assert_array_equal(cold[2][0], cold[2][1])
    assert np.any(cold[0][0] != cold[0][1])


def test_samples_do_not_depend_on_batch_or_devices():
    images = vae()(PROMPTS, seed=1).images.astype(int)
    for other in (vae()(PROMPTS, seed=1, batch_size=1), pipeline(vae_config(), mesh=eight_devices())(PROMPTS, seed=1)):
        assert np.abs(images - other.images).max() <= 1


def test_base_of_a_diffusion_cascade():
    output = cascade()(PROMPTS, seed=1, num_inference_steps=3)
    assert [images.shape[1] for images in output.stages] == [8, 16]
    assert np.abs(output.stages[0].astype(int) - vae()(PROMPTS, seed=1).images).max() <= 1
    with pytest.raises(ConfigError):
        cascade()(PROMPTS, guidance_scale=3.0)
    assert cascade()(PROMPTS, guidance_scale=[1.0, 3.0]).images.shape == (3, 16, 16, 3)


def test_super_resolution_vae():
    two = pipeline(vae_config(), vae_sr_config())
    images = two(PROMPTS, seed=1).images
    assert images.shape == (3, 16, 16, 3)
    other = two(PROMPTS, seed=1, temperature=[0.0, 1.0])
    assert np.any(images != other.images)  # another low resolution


def test_latents_of_samples_give_them_back():
    editor = ImagenEditor(vae())
    images = vae()(PROMPTS, seed=1, temperature=0.5).images
    inversion = editor.invert(list(images), PROMPTS)
    ((latents,),) = inversion.arrays
    assert latents.shape == (3, 2 * (4 * 4 + 8 * 8))
    decoded = editor.from_inversion(inversion).images
    np.testing.assert_array_equal(decoded, editor.reconstruct(list(images), PROMPTS).images)
    assert np.any(decoded[0] != decoded[1])


def test_interpolation_ends_at_its_ends():
    editor = ImagenEditor(vae())
    images = editor.interpolate(1, 2, 3, "a ring").images
    for seed, image in ((1, images[0]), (2, images[2])):
        assert np.abs(vae()("a ring", seed=seed).images[0].astype(int) - image).max() <= 1
    ends = list(images[::2])
    between = editor.interpolate(*ends, 3, "a ring").images
    reconstructed = editor.reconstruct(ends, ["a ring"] * 2).images
    assert np.abs(between[::2].astype(int) - reconstructed).max() <= 1


def test_reconstruction_in_a_cascade():
    small = cascade()(PROMPTS, seed=1).images
    output = ImagenEditor(cascade()).reconstruct(list(small), PROMPTS)
    assert [images.shape[1] for images in output.stages] == [8, 16]


def test_what_a_vae_cannot_do_is_refused():
    editor = ImagenEditor(vae())
    image = np.zeros((8, 8, 3), np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    mask[:4] = 255
    for call in (
        lambda: editor.image_to_image(image, "a ring", strength=0.5),
        lambda: editor.inpaint(image, mask, "a ring"),
        lambda: editor.edit(image, "a ring", "a cross"),
        lambda: ImagenEditor(pipeline(sr_config(low_res_size=0))).reconstruct(image, "a ring"),
    ):
        with pytest.raises(ConfigError, match="VAE"):
            call()
    assert editor.image_to_image(image, "a ring", strength=1.0).images.shape == (1, 8, 8, 3)
    with pytest.raises(ConfigError):
        pipeline(vae_config(), mesh=make_mesh({"data": 1, "fsdp": 1, "spatial": 8}, jax.devices()))
