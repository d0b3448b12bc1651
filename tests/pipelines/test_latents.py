"""A cascade whose base draws latents samples, edits, is shown on its way, and is published, as any other."""

import jax
import numpy as np
import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.images.array import to_float, to_uint
from imagen_jax.pipelines.editor import ImagenEditor
from imagen_jax.pipelines.imagen import ImagenPipeline

pytest_plugins = ("tests.helpers.fixtures",)
SETTINGS = {"num_inference_steps": 2, "guidance_scale": 1.0, "sampler": "ddim"}
IMAGE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def pipeline(latent_folder):
    return ImagenPipeline.from_pretrained(latent_folder)


@pytest.fixture(scope="module")
def editor(pipeline):
    return ImagenEditor(pipeline)


@pytest.fixture(scope="module")
def decoded(pipeline):
    """The image as the codec returns it."""
    trained = pipeline.stages[0]
    through = jax.jit(lambda params, x: trained.stage.decode(params, trained.stage.encode(params, to_float(x))))
    return np.asarray(to_uint(through(trained.params, IMAGE[None]), np.uint8))[0]


def test_samples_are_pixels_and_so_are_previews(pipeline):
    previews = []
    output = pipeline(
        ["a ring", "a red circle"], callback=lambda progress: previews.append(progress.preview()), **SETTINGS
    )
    assert output.images.shape == (2, 8, 8, 3)
    assert output.images.dtype == np.uint8
    # another program decodes them
    np.testing.assert_allclose(previews[-1].astype(int), output.images, atol=1)


def test_image_does_not_depend_on_its_batch(pipeline):
    together = pipeline(["a ring", "a red circle"], seed=[3, 4], **SETTINGS).images
    alone = pipeline("a red circle", seed=[4], **SETTINGS).images
    np.testing.assert_allclose(together[1].astype(int), alone[0], atol=1)


def test_super_resolution_follows_latents(latent_folder, sr_folder):
    output = ImagenPipeline.from_pretrained([latent_folder, sr_folder])("a ring", num_inference_steps=1, seed=1)
    assert [images.shape for images in output.stages] == [(1, 8, 8, 3), (1, 16, 16, 3)]


def test_image_to_image_begins_with_the_image(editor, decoded):
    returned = editor.image_to_image(IMAGE, "a ring", strength=0.0, **SETTINGS).images[0]
    np.testing.assert_array_equal(returned, IMAGE)
    weak, strong = (
        editor.image_to_image(IMAGE, "a ring", strength, **{**SETTINGS, "num_inference_steps": 10})
        .images[0]
        .astype(int)
        for strength in (0.1, 1.0)
    )
    assert np.abs(weak - decoded).mean() < 0.5 * np.abs(strong - decoded).mean()


def test_inpainting_keeps_what_is_not_masked_and_does_not_see_what_is(editor):
    mask = np.zeros((8, 8), bool)
    mask[2:6, 3:7] = True
    other = np.where(mask[..., None], 255 - IMAGE, IMAGE)
    images = [editor.inpaint(image, mask, "a ring", feather=0, **SETTINGS).images[0] for image in (IMAGE, other)]
    np.testing.assert_array_equal(*images)
    np.testing.assert_array_equal(images[0][~mask], IMAGE[~mask])
    assert np.any(images[0][mask] != IMAGE[mask])


def test_inversion_returns_what_the_codec_does(editor, decoded):
    inversion = editor.invert(IMAGE, "a ring", num_inference_steps=4)
    assert inversion.arrays[0][0].shape == (1, 4, 4, 2)
    returned = editor.from_inversion(inversion).images[0].astype(int)
    assert np.abs(returned - decoded).max() <= 2


def test_edit_with_equal_prompts_returns_what_the_codec_does(editor, decoded):
    edited = editor.edit(IMAGE, "a ring", "a ring", **SETTINGS).images[0].astype(int)
    assert np.abs(edited - decoded).max() <= 2


def test_published_cascade_has_the_codec(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "cascade", license="apache-2.0", prompts=["a ring"])
    published = ImagenPipeline.from_pretrained(tmp_path / "cascade")
    np.testing.assert_array_equal(*(each("a red circle", seed=2, **SETTINGS).images for each in (pipeline, published)))


def test_settings_of_pixels_are_refused(pipeline):
    with pytest.raises(ConfigError, match=r"sampling\.threshold"):
        pipeline("a ring", threshold="static")


def test_codecs_draw_nothing(codec_folder):
    with pytest.raises(ConfigError, match="is a codec"):
        ImagenPipeline.from_pretrained(codec_folder)
