"""Editing by the cascade that ships: what is kept is kept to the bit, and everything else is a function of the seed."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.datasets.shapes.detect import detect
from imagen_jax.datasets.shapes.render import render
from imagen_jax.datasets.shapes.scenes import Scene, SceneObject
from imagen_jax.errors import ConfigError
from imagen_jax.pipelines.editor import ImagenEditor
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.inversion import Inversion, slerp
from imagen_jax.pipelines.loading import TrainedStage
from imagen_jax.stages.stage import build
from tests.helpers.configs import FunctionNetwork, base_config, eight_devices, one_device, sr_config

CIRCLE = SceneObject("circle", "red", "large", 0.3, 0.5, 0.21)
SQUARE = SceneObject("square", "yellow", "small", 0.75, 0.5, 0.15)
PROMPT = "a red circle left of a yellow square on a gray background"
CHANGED = "a green ring left of a yellow square on a gray background"
QUICK = {"num_inference_steps": [4, 2]}


@pytest.fixture(scope="module")
def image():
    return render(Scene((CIRCLE, SQUARE), "gray"), 64)


@pytest.fixture(scope="module")
def mask():
    mask = np.zeros((64, 64), bool)
    mask[16:48, 3:36] = True
    return mask


@pytest.fixture(scope="module")
def editor():
    return ImagenEditor(loaded(one_device()))


def loaded(mesh):
    pipeline = ImagenPipeline.from_pretrained("shapes", mesh)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def appearances(image):
    return [(item.color, item.shape) for item in detect(image).objects]


def test_strength_1_is_plain_sampling_and_0_is_the_image(editor, image):
    plain = editor.pipeline(CHANGED, seed=3).images
    np.testing.assert_array_equal(editor.image_to_image(image, CHANGED, 1.0, seed=3).images, plain)
    np.testing.assert_array_equal(editor.image_to_image(image, CHANGED, 0.0, seed=3).images[0], image)
    between = [editor.image_to_image(image, CHANGED, strength, seed=3).images[0] for strength in (0.2, 0.6)]
    near, far = (np.abs(one.astype(int) - image).mean() for one in between)
    assert 0 < near < far


def test_strength_of_each_stage(editor, image):
    output = editor.image_to_image(image, PROMPT, [0.0, 0.5], seed=1)
    small = editor.image_to_image(image, PROMPT, 0.0).stages[0]
    np.testing.assert_array_equal(output.stages[0], small)
    assert np.any(output.images[0] != image)


def test_inpainting_changes_what_is_masked_alone(editor, image, mask):
    output = editor.inpaint(image, mask, CHANGED, seed=2)
    np.testing.assert_array_equal(output.images[0][~mask], image[~mask])
    assert sorted(appearances(output.images[0])) == [("green", "ring"), ("yellow", "square")]
    np.testing.assert_array_equal(output.stages[-1], output.images)


def test_resampling_takes_each_step_again(editor, image, mask):
    results = [editor.inpaint(image, mask, CHANGED, seed=2, resample=n, **QUICK).images[0] for n in (1, 2, 3)]
    assert np.any(results[0] != results[1]) and np.any(results[1] != results[2])
    for result in results:
        np.testing.assert_array_equal(result[~mask], image[~mask])


def test_feather(editor, image, mask):
    """Without it the new part is as it was drawn, with it a border of the part is mixed with the image."""
    sharp, soft = (editor.inpaint(image, mask, CHANGED, seed=2, feather=n, **QUICK).images[0] for n in (0, 3))
    differs = np.any(sharp != soft, -1)
    inner = np.zeros_like(mask)
    inner[19:45, 6:33] = True
    assert differs.any() and not differs[inner].any() and not differs[~mask].any()


def test_outpainting_keeps_the_image(editor, image):
    output = editor.outpaint(image, (64, 128), PROMPT, (0, 64), seed=1, **QUICK)
    assert output.images.shape == (1, 64, 128, 3)
    np.testing.assert_array_equal(output.images[0][:, 64:], image)
    assert output.stages[0].shape == (1, 32, 64, 3)


def test_outpainted_objects_have_their_shape(editor):
    """Also at twice the width of training, where evenly spread positions blur such objects."""
    given = [render(Scene((dataclasses.replace(SQUARE, x=0.5),), name), 64) for name in ("gray", "tan") for _ in "1234"]
    objects = [("purple", "square"), ("red", "cross"), ("cyan", "square"), ("pink", "cross")] * 2
    prompts = [
        f"a yellow square left of a {color} {shape} on a {name} background"
        for (color, shape), name in zip(objects, ["gray"] * 4 + ["tan"] * 4, strict=True)
    ]
    images = editor.outpaint(given, (64, 128), prompts, (0, 0), seed=1).images
    right = [set(appearances(one)) for one in images]
    assert sum(one == {("yellow", "square"), new} for one, new in zip(right, objects, strict=True)) >= 7


def test_variations(editor, image):
    images = editor.variations(image, 3, 0.5, seed=4, prompt=PROMPT, **QUICK).images
    assert len({one.tobytes() for one in images}) == 3
    assert np.abs(images.astype(int) - image).mean() < 20


def test_upscaling(editor, image):
    small = editor.image_to_image(image, PROMPT, 0.0).stages[0][0]
    output = editor.upscale(small, PROMPT, seed=1)
    assert output.images.shape == (1, 64, 64, 3) and len(output.stages) == 1
    assert np.abs(output.images[0].astype(int) - image).mean() < 8
    # a larger one in tiles
    large = editor.upscale(image, PROMPT, num_inference_steps=2)
    assert large.images.shape == (1, 128, 128, 3)
    assert np.abs(large.images[0, ::2, ::2].astype(int) - image).mean() < 8


@pytest.mark.parametrize("exact, least", [(True, 80), (False, 35)])
def test_inversion_returns_to_the_image(editor, image, exact, least, tmp_path):
    inversion = editor.invert(image, PROMPT, exact, num_inference_steps=25)
    inversion.save(tmp_path / "inversion.npz")
    again = editor.from_inversion(Inversion.load(tmp_path / "inversion.npz")).images[0]
    error = np.mean(np.square(again.astype(float) - image))
    assert 10 * np.log10(255**2 / max(error, 1e-9)) > least
    other = editor.from_inversion(inversion, CHANGED).images[0]
    assert np.any(other != again)


def test_other_files_are_no_inversions(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"hello")
    for name in ("x.npz", "none.npz"):
        with pytest.raises(ConfigError, match="is not an inversion"):
            Inversion.load(tmp_path / name)


def test_interpolation_has_both_ends(editor, image):
    plain = editor.pipeline(PROMPT, seed=3, sampler="ddim", **QUICK).images[0]
    seeds = editor.interpolate(3, 4, 3, PROMPT, sampler="ddim", **QUICK).images
    np.testing.assert_allclose(seeds[0].astype(int), plain, atol=1)
    prompts = editor.interpolate(PROMPT, CHANGED, 3, seed=3, sampler="ddim", **QUICK).images
    np.testing.assert_allclose(prompts[0].astype(int), plain, atol=1)
    assert len({one.tobytes() for one in (*seeds, *prompts[1:])}) == 5
    images = editor.interpolate(image, image[:, ::-1].copy(), 3, PROMPT, num_inference_steps=10).images
    np.testing.assert_allclose(images[0].astype(int), image, atol=2)
    np.testing.assert_allclose(images[2].astype(int), image[:, ::-1], atol=2)


def test_slerp_keeps_the_length():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 4, 4, 3)).astype(np.float32)
    between = slerp(first, second, np.linspace(0, 1, 5, dtype=np.float32))
    np.testing.assert_allclose(between[0], first, rtol=1e-5)
    np.testing.assert_allclose(between[4], second, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(slerp(first, first, np.array([0.5], np.float32))[0], first, rtol=1e-5)
    assert between.dtype == np.float32
    norms = np.linalg.norm(between.reshape(5, -1), axis=1)
    assert norms.min() > 0.9 * min(norms[0], norms[4])


def test_the_same_at_any_batch_and_on_other_devices(editor, image, mask):
    prompts, settings = [CHANGED, PROMPT, CHANGED], {"seed": 5, "resample": 2, **QUICK}
    expected = editor.inpaint(image, mask, prompts, batch_size=4, **settings).images
    for other, batch_size in ((editor, 1), (ImagenEditor(loaded(eight_devices())), 8)):
        result = other.inpaint([image] * 3, [mask] * 3, prompts, batch_size=batch_size, **settings).images
        np.testing.assert_allclose(result.astype(int), expected, atol=1)


def of_known_pixels(params, z, level, text, mask, low_res, aug_level, dropout_keys, known, control, positions):
    """Predicts the mean of the pixels that a stage sees; white where it sees none."""
    seen = 1 - known[..., 3:]
    count = seen.sum((1, 2), keepdims=True)
    total = (known[..., :3] * seen).sum((1, 2), keepdims=True)
    return z * 0 + jnp.where(count > 0, total / jnp.maximum(count, 1), 1.0)


def test_stages_trained_to_inpaint_see_what_is_kept():
    changes = {"inpainting.enabled": True, "diffusion.prediction_type": "x"}
    stages = [
        dataclasses.replace(build(config(**changes)), network=FunctionNetwork(of_known_pixels))
        for config in (base_config, sr_config)
    ]
    pipe = ImagenPipeline([TrainedStage(stage, {}, 0) for stage in stages], one_device())
    trained = ImagenEditor(pipe)
    # the right half is not seen, nor is what the smaller stage would see of it
    left = np.zeros((16, 16, 3), np.uint8)
    left[:, :8], left[:, 8:] = (200, 100, 50), (0, 0, 255)
    right_half = np.zeros((16, 16), bool)
    right_half[:, 8:] = True
    for images in trained.inpaint(left, right_half, "a ring", feather=0).stages:
        assert np.abs(images.astype(int) - (200, 100, 50)).max() <= 3
    (outpainted,) = trained.outpaint(left[:, :8], (16, 16), "a ring", (0, 0), feather=0).images
    assert np.abs(outpainted.astype(int) - (200, 100, 50)).max() <= 3
    # without a mask nothing is seen
    for images in (pipe("a ring").images, trained.image_to_image(left, "a ring", 0.9).images):
        assert images.min() >= 252


def test_one_stage_alone(image):
    editor = ImagenEditor(ImagenPipeline([loaded(one_device()).stages[0]], one_device()))
    small = image[::2, ::2].copy()
    np.testing.assert_array_equal(editor.image_to_image(small, PROMPT, 0.0).images[0], small)
    with pytest.raises(ConfigError, match="no super-resolution stage"):
        editor.upscale(small, PROMPT)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda e, i, m: e.inpaint(i, m[:32], "a"), "mask has 32×64 pixels and image 64×64"),
        (lambda e, i, m: e.inpaint(i, m & False, "a"), "nothing to draw anew"),
        (lambda e, i, m: e.inpaint(i, m | True, "a"), "nothing that is kept"),
        (lambda e, i, m: e.inpaint(i, m, "a", resample=0), "resample 0"),
        (lambda e, i, m: e.inpaint(i, m, "a", feather=-1), "feather -1"),
        (lambda e, i, m: e.image_to_image(i, "a", 1.5), "strength 1.5 is not in"),
        (lambda e, i, m: e.image_to_image(i, "a", [0.5]), "strength has 1 values for 2 stages"),
        (lambda e, i, m: e.image_to_image(i[:32], "a"), "32×64 pixels, which is not the aspect"),
        (lambda e, i, m: e.image_to_image([i, i], ["a", "b", "c"]), "2 images for 3 prompts"),
        (lambda e, i, m: e.image_to_image(np.dstack([i, i[..., :1]]), "a"), "alpha"),
        (lambda e, i, m: e.image_to_image(i.astype(np.uint16), "a"), "16 bits"),
        (lambda e, i, m: e.outpaint(i, (64, 96), "a", (0, 40)), "not on a canvas"),
        (lambda e, i, m: e.outpaint(i, (64, 64), "a"), "nothing to draw"),
        (lambda e, i, m: e.variations(i, 0), "count 0"),
        (lambda e, i, m: e.upscale(i[:16, :16], "a"), "fewer than 32×32"),
        (lambda e, i, m: e.interpolate(1, "a", 3), "two kinds"),
        (lambda e, i, m: e.interpolate(1, 2, 3), "prompt is None"),
        (lambda e, i, m: e.interpolate("a", "b", 1), "count 1"),
        (lambda e, i, m: e.invert(i, "a", sampler="ddpm"), "deterministic"),
    ],
    ids=range(19),
)
def test_wrong_use_is_one_sentence(editor, image, mask, edit, message):
    with pytest.raises(ConfigError, match=message) as error:
        edit(editor, image, mask)
    assert "\n" not in str(error.value)
