"""Stages that are trained to inpaint: they see the image outside of the mask, and sample without one as others do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.data.pipeline import training_batches
from imagen_jax.datasets.from_config import make_examples
from imagen_jax.datasets.registry import make_source
from imagen_jax.diffusion.guidance import Guidance
from imagen_jax.diffusion.random_masks import MASK_KINDS
from imagen_jax.errors import ConfigError
from imagen_jax.stages import stage as stages
from imagen_jax.stages.loss import DiffusionBatch, diffusion_loss
from imagen_jax.stages.sampling import StageInputs, _make_predict_fn, guided_prediction
from imagen_jax.stages.stage_sampler import NoiseSource, StageSampler, make_request
from imagen_jax.stages.text import PromptEncoder, make_encoder
from imagen_jax.text.encoder import TextCondition
from imagen_jax.training.diffusion import DiffusionObjective, make_diffusion_batch
from tests.helpers.configs import FunctionNetwork, base_config, eight_devices, one_device, perturbed_params, sr_config

ON = {"inpainting.enabled": True, "sampling.threshold": "none"}
PROMPTS = ["a red circle", "two blue squares", "a ring"]
MASK = np.zeros((3, 8, 8, 1), np.float32)
MASK[:, 2:6, 3:8] = 1


@pytest.fixture(scope="module")
def base():
    stage = stages.build(base_config(**ON))
    return stage, perturbed_params(stage)


@pytest.fixture(scope="module")
def super_resolution():
    stage = stages.build(sr_config(**ON))
    return stage, perturbed_params(stage)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)


def sample(trained, image=None, mask=None, mesh=None, **changes):
    stage, params = trained
    mesh = mesh or one_device()
    low_res = np.zeros((3, *stage.low_res_shape), np.float32) if stage.is_super_resolution else None
    encoder = PromptEncoder(make_encoder(stage.config.text), mesh)
    request = make_request(stage, encoder, PROMPTS, NoiseSource(3), low_res)
    given = {name: array for name, array in {"image": image, "mask": mask}.items() if array is not None}
    padding = len(request.keys) - 3
    arrays = {
        name: jnp.asarray(np.concatenate([array, np.zeros((padding, *array.shape[1:]), np.float32)]))
        for name, array in given.items()
    }
    return np.asarray(StageSampler(stage, mesh).sample(params, dataclasses.replace(request, **arrays, **changes)))[:3]


def enlarged(array):
    return array.repeat(2, axis=1).repeat(2, axis=2)


def test_image_is_seen_outside_of_the_mask_alone(base, images):
    stage, _ = base
    known = np.asarray(stage.mask_known(jnp.asarray(images), jnp.asarray(MASK * 0.3))["known"])
    np.testing.assert_array_equal(known[..., :3], images * (MASK == 0))
    np.testing.assert_array_equal(known[..., 3:], MASK)
    np.testing.assert_array_equal(
        stage.unknown((2, 4, 6, 3))["known"], np.float32([0, 0, 0, 1]) * np.ones((2, 4, 6, 4))
    )


@pytest.mark.parametrize("name", ["base", "super_resolution"])
def test_known_pixels_reach_the_network_and_hidden_ones_do_not(name, images, request):
    trained = request.getfixturevalue(name)
    image, mask = (images, MASK) if name == "base" else (enlarged(images), enlarged(MASK))
    hidden = np.where(mask > 0, -image, image)
    other = np.where(mask > 0, image, -image)
    result = sample(trained, image, mask)
    # z_0 still has a little noise
    np.testing.assert_allclose(result * (mask == 0), image * (mask == 0), atol=1e-3)
    np.testing.assert_array_equal(sample(trained, hidden, mask), result)
    changed = np.abs(sample(trained, other, mask) - result) * mask
    assert changed.max() > 1e-3

    # not by z alone
    stage, params = trained
    blind = params | {part: jax.tree.map(np.zeros_like, params[part]) for part in ("known_stem", "known_skip")}
    assert np.abs(sample((stage, blind), image, mask) - result).max() > 1e-3


def test_without_an_image_everything_is_masked(base, images):
    """To the bit: the same program, and the same channels."""
    plain = sample(base)
    np.testing.assert_array_equal(sample(base, images, np.ones_like(MASK)), plain)
    # an image without a mask, to begin with: all of it is drawn anew
    started = sample(base, images, strength=0.5)
    assert np.abs(started - plain).max() > 1e-3
    assert np.abs(sample(base, images, np.ones_like(MASK), strength=0.5) - started).max() == 0


def test_any_batch_and_mesh(base, images):
    together = sample(base, images, MASK)
    np.testing.assert_allclose(sample(base, images, MASK, eight_devices()), together, atol=1e-5)
    np.testing.assert_allclose(sample(base, images, MASK, isolated=True), together, atol=1e-5)


def test_unconditional_half_keeps_image_and_mask(base, images):
    stage, _ = base
    asked = []

    def predict(inputs):
        asked.append(inputs)
        return inputs.z, None

    condition = stage.mask_known(jnp.asarray(images), jnp.asarray(MASK))
    text = TextCondition(jnp.ones((3, 2, 4)), jnp.ones((3, 2), bool))
    null_text = TextCondition(jnp.zeros((2, 4)), jnp.zeros(2, bool))
    inputs = StageInputs(jnp.asarray(images), jnp.float32(0), text, condition)
    guided_prediction(predict, inputs, null_text, Guidance(3.0), jnp.float32(0))
    (both,) = asked
    np.testing.assert_array_equal(both.condition["known"], np.tile(condition["known"], (2, 1, 1, 1)))


def test_tiles_see_their_part_of_the_image():
    """A network that returns what is known: from tiles, the same as from the full image."""
    config = sr_config(**ON, **{"data.crop_size": 8, "sampling.tile_size": 8, "sampling.tile_overlap": 4})

    def apply(params, z, level, text, mask, low_res, aug_level, dropout_keys, known, control, positions):
        assert low_res.shape[1:3] == known.shape[1:3] == z.shape[1:3] == (8, 8)
        return known[..., :3] + 10 * known[..., 3:] + 100 * low_res

    stage = dataclasses.replace(stages.build(config), network=FunctionNetwork(apply))
    rng = np.random.default_rng(0)
    image, low_res = (jnp.asarray(rng.uniform(-1, 1, (3, 16, 16, 3)), jnp.float32) for _ in range(2))
    known = stage.mask_known(image, jnp.asarray(enlarged(MASK)))
    text = TextCondition(jnp.ones((3, 2, 4)), jnp.ones((3, 2), bool))
    condition = {"low_res": low_res, "aug_level": jnp.zeros(3)} | known
    prediction, _ = _make_predict_fn(stage, config.sampling)({}, image, jnp.zeros(3), text, condition)
    expected = known["known"][..., :3] + 10 * known["known"][..., 3:] + 100 * low_res
    np.testing.assert_allclose(prediction, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["base", "super_resolution"])
def test_training_examples(name, request):
    stage, params = request.getfixturevalue(name)
    encoder, source = make_encoder(stage.config.text), make_source(stage.config.data, "train", stage.config.image_size)
    examples = [source[i] for i in range(16)]
    tokens, text_mask = encoder.tokenize([example.captions[0] for example in examples])
    batch = {"image": np.stack([example.image for example in examples]), "tokens": tokens, "mask": text_mask}
    batch = jax.tree.map(jnp.asarray, batch)

    def draw(stage, seed=0):
        return make_diffusion_batch(stage, encoder, encoder.params, batch, jax.random.key(seed))

    drawn = draw(stage)
    known, mask = np.asarray(drawn.condition["known"][..., :3]), np.asarray(drawn.condition["known"][..., 3:])
    np.testing.assert_array_equal(known, np.asarray(drawn.x) * (mask == 0))
    assert 0.1 < mask.mean() < 0.9
    assert len({one.tobytes() for one in mask}) > 8
    assert np.any(mask != np.asarray(draw(stage, 1).condition["known"][..., 3:]))
    # all else is as it is drawn for a stage that is not trained to inpaint
    plain_stage = stages.build(stage.config.with_changes({"inpainting.enabled": False}))
    plain = draw(plain_stage)
    same = drawn._replace(condition={key: array for key, array in drawn.condition.items() if key != "known"})
    jax.tree.map(np.testing.assert_array_equal, same, plain)


def test_masks_of_objects_are_drawn_in_training():
    """Each covers one of them; the batch says where they are."""
    weights = {f"inpainting.{kind}": float(kind == "objects") for kind in MASK_KINDS}
    stage = stages.build(base_config(**ON, **weights))
    encoder = make_encoder(stage.config.text)
    examples = make_examples(stage.config.data, "train", 8, 3, objects=True)
    batches = training_batches(examples, encoder.tokenize.as_features, 16, seed=0, threads=1, prefetch=1)
    batch = jax.tree.map(jnp.asarray, next(batches))
    drawn = make_diffusion_batch(stage, encoder, encoder.params, batch, jax.random.key(0))
    masks = np.asarray(drawn.condition["known"][..., 3]) > 0
    objects = np.asarray(batch["objects"][..., 0])
    for mask, there in zip(masks, objects, strict=True):
        assert any(mask[there == number].all() for number in np.unique(there[there > 0]))
    assert masks.mean() < 0.6
    assert DiffusionObjective(stage, encoder).batch_axes.keys() == batch.keys()


def test_loss_is_of_what_is_drawn(base, images):
    """By a network that is wrong by 1 in known pixels and by 0.5 in the others, of which there are few or many."""
    stage = base[0]

    def apply(params, z, level, text, mask, low_res, aug_level, dropout_keys, known, control, positions):
        return images + jnp.where(known[..., 3:] > 0, 0.5, 1.0)

    config = stage.config.with_changes({"diffusion.prediction_type": "x", "diffusion.loss_weighting": "simple"})
    stage = dataclasses.replace(stage, config=config, network=FunctionNetwork(apply))
    text = TextCondition(jnp.ones((3, 2, 4)), jnp.ones((3, 2), bool))
    mask = jnp.stack([jnp.asarray(MASK[0]), jnp.ones((8, 8, 1)), jnp.zeros((8, 8, 1)).at[0, 0].set(1)])
    condition = stage.mask_known(jnp.asarray(images), mask)
    batch = DiffusionBatch(jnp.asarray(images), text, condition, jnp.full(3, 0.5), jnp.zeros((3, 8, 8, 3)))
    np.testing.assert_allclose(diffusion_loss(stage, {}, batch).loss, 0.25, rtol=1e-5)


def test_new_parts_have_no_effect_at_first(base, images):
    """To the bit; from there they learn: their gradients are not 0."""
    stage, params = base
    plain = stages.build(stage.config.with_changes({"inpainting.enabled": False}))
    fresh = jax.jit(stage.init)(jax.random.key(0))
    new = {"known_stem", "known_skip"}
    assert fresh.keys() - jax.eval_shape(plain.init, jax.random.key(0)).keys() == new
    for part in new:
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(fresh[part]))
    params = params | {part: fresh[part] for part in new}
    text = TextCondition(jnp.ones((3, 24, stage.text_width)), jnp.ones((3, 24), bool))
    known = stage.mask_known(jnp.asarray(images), jnp.asarray(MASK))
    arguments = jnp.asarray(images), jnp.zeros(3), text
    output = jax.jit(lambda params: stage.predict(params, *arguments, known)[0])(params)
    rest = {part: value for part, value in params.items() if part not in new}
    np.testing.assert_array_equal(output, jax.jit(lambda params: plain.predict(params, *arguments, {})[0])(rest))
    assert np.abs(output).max() > 0.1
    gradients = jax.jit(jax.grad(lambda params: jnp.sum(stage.predict(params, *arguments, known)[0] ** 2)))(params)
    assert all(np.abs(leaf).max() > 0 for part in new for leaf in jax.tree.leaves(gradients[part]))


def test_masks_are_needed():
    none = {f"inpainting.{kind}": 0.0 for kind in MASK_KINDS}
    base_config(**none)
    with pytest.raises(ConfigError, match=r"inpainting\.everything.*above 0"):
        base_config(**ON, **none)
