import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.config.load import from_json, to_json
from imagen_jax.diffusion.schedules import cosine_time
from imagen_jax.errors import ConfigError
from imagen_jax.images.resize import resize
from imagen_jax.stages import stage as stages
from imagen_jax.stages.text import PromptEncoder, make_encoder, null_text
from imagen_jax.text.encoder import TextCondition
from tests.helpers.configs import base_config, fresh_params, one_device, perturbed_params, sr_config

pytest_plugins = ("tests.helpers.fixtures",)
NO_POSITIONS = {"model.positions": 0}
WIDE = {"image_size": (8, 12)}


def test_what_a_stage_is(base_stage, sr_stage):
    assert not base_stage.is_super_resolution
    assert base_stage.image_shape == (8, 8, 3)
    assert sr_stage.is_super_resolution
    assert (sr_stage.low_res_shape, sr_stage.image_shape) == ((8, 8, 3), (16, 16, 3))


def test_a_stage_survives_json(base_stage):
    """As sampling reads it: tuples have become lists."""
    again = stages.build(from_json(to_json(base_stage.config)))
    assert again.network == base_stage.network


class TestConditioning:
    @pytest.fixture()
    def low_res(self):
        return jax.random.uniform(jax.random.key(0), (3, 8, 8, 3), minval=-1)

    @pytest.fixture()
    def eps(self):
        return jax.random.normal(jax.random.key(1), (3, 8, 8, 3))

    def test_level_0_is_the_image_itself(self, sr_stage, low_res, eps):
        condition = sr_stage.augment_low_res(low_res, jnp.zeros(3), eps)
        np.testing.assert_allclose(condition["low_res"], resize(low_res, 16, 16), atol=0.02)

    def test_level_1_is_noise_alone(self, sr_stage, low_res, eps):
        condition = sr_stage.augment_low_res(low_res, jnp.ones(3), eps)
        np.testing.assert_allclose(condition["low_res"], resize(eps, 16, 16), atol=0.02)

    def test_each_example_has_its_own_level(self, sr_stage, low_res, eps):
        levels = jnp.array([0.0, 0.5, 1.0])
        together = sr_stage.augment_low_res(low_res, levels, eps)
        for i in range(3):
            alone = sr_stage.augment_low_res(low_res[i : i + 1], levels[i : i + 1], eps[i : i + 1])
            np.testing.assert_allclose(alone["low_res"][0], together["low_res"][i], atol=1e-6)
        told = np.asarray(together["aug_level"])
        assert (np.diff(told) > 0.05).all()
        assert (told >= 0).all()
        assert (told <= 1).all()

    def test_image_level_and_text_reach_the_network(self, sr_stage, low_res, eps):
        params = perturbed_params(sr_stage)
        embeddings = jax.random.normal(jax.random.key(2), (3, 24, sr_stage.text_width))
        mask = jnp.ones(embeddings.shape[:2], bool)
        text, short = TextCondition(embeddings, mask), TextCondition(embeddings, mask.at[:, 4:].set(False))
        z = jax.random.normal(jax.random.key(3), (3, 16, 16, 3))
        predict = jax.jit(lambda *args: sr_stage.predict(*args)[0])
        condition = sr_stage.augment_low_res(low_res, jnp.full(3, 0.3), eps)
        usual = predict(params, z, jnp.zeros(3), text, condition)
        others = {
            "low_res": predict(params, z, jnp.zeros(3), text, {**condition, "low_res": -condition["low_res"]}),
            "aug_level": predict(params, z, jnp.zeros(3), text, {**condition, "aug_level": jnp.full(3, 0.9)}),
            "logsnr": predict(params, z, jnp.full(3, 5.0), text, condition),
            "text": predict(params, z, jnp.zeros(3), TextCondition(-embeddings, mask), condition),
            "mask": predict(params, z, jnp.zeros(3), short, condition),
            "z": predict(params, -z, jnp.zeros(3), text, condition),
        }
        assert usual.shape == z.shape
        for name, other in others.items():
            assert np.abs(usual - other).max() > 1e-3, name
        padded = TextCondition(jnp.where(short.mask[..., None], embeddings, 7.0), short.mask)
        np.testing.assert_allclose(predict(params, z, jnp.zeros(3), padded, condition), others["mask"], atol=1e-5)


def test_no_text_is_zero_or_what_the_encoder_makes_of_no_words(base_stage):
    encoder = make_encoder(base_stage.config.text)
    text, mask = null_text("zero", encoder, {})
    assert not np.any(text)
    assert not np.any(mask)
    text, mask = null_text("empty", encoder, encoder.params)
    # its only token is the end of the sequence
    np.testing.assert_array_equal(np.flatnonzero(mask), [0])
    tokens, _ = encoder.tokenize(["a"])
    end = np.zeros_like(tokens)
    end[0, 0] = tokens[0, 1]
    expected = encoder.encode(encoder.params, end, end > 0)
    np.testing.assert_allclose(text[0], expected[0, 0], atol=1e-5)
    assert np.abs(text[0]).max() > 0
    np.testing.assert_array_equal(text[1:], 0)


def test_encoded_padding_and_cleaning_of_prompts():
    config = base_config(**{"text.padding": "encoded", "text.cleaning": "if"}).text
    encoder = PromptEncoder(make_encoder(config), one_device(), config)
    text, mask = encoder(["A <b>Red</b> ring", "a red ring", "", "http://example.com"])
    np.testing.assert_array_equal(text[0], text[1])
    np.testing.assert_array_equal(mask.sum(1), [11, 11, 1, 1])
    # whatever has no words is the empty caption, whose padding is encoded too
    empty = encoder.null_text("empty")
    for row in (2, 3):
        np.testing.assert_allclose(text[row], empty.embeddings, atol=1e-6)
        np.testing.assert_array_equal(mask[row], empty.mask)
    assert np.abs(empty.embeddings).max(axis=-1).min() > 0.01
    assert not np.any(encoder.null_text("zero").embeddings)


@pytest.fixture(scope="module")
def learned_stage():
    return stages.build(base_config(**{"diffusion.variance_type": "learned"}))


def outputs(stage, *trees):
    """(prediction, v) of two noisy images, under each of some parameters."""
    text = TextCondition(jnp.ones((2, 24, stage.text_width)), jnp.ones((2, 24), bool))
    z = jax.random.normal(jax.random.key(0), (2, *stage.image_shape))
    arguments = z, jnp.zeros(2), text, {}
    predict = jax.jit(stage.predict)
    return [predict(params, *arguments) for params in trees]


def test_a_learned_variance_has_the_shape_of_images_and_no_inputs_skip_to_it(learned_stage):
    assert learned_stage.config.model.input_skip
    fresh = fresh_params(learned_stage)
    skipping = {**fresh, "input_skip": jax.tree.map(jnp.ones_like, fresh["input_skip"])}
    found = outputs(learned_stage, perturbed_params(learned_stage), fresh, skipping)
    for prediction, v in found:
        assert prediction.shape == v.shape == (2, *learned_stage.image_shape)
    assert np.abs(found[0][0] - found[0][1]).max() > 1e-3
    # a fresh network is midway between the bounds
    for array in (*found[1], found[2][1]):
        np.testing.assert_array_equal(array, 0)
    assert np.abs(found[2][0]).min() > 0


def test_a_variance_that_is_fixed_is_none(base_stage):
    ((_, v),) = outputs(base_stage, fresh_params(base_stage))
    assert v is None


def test_the_network_is_told_more_noise_as_more():
    told = cosine_time(jnp.array([10.0, 0.0, -10.0]))
    assert (np.diff(told) > 0).all()


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model.network": "vit"}, "model.network 'vit'.* unet, efficient_unet"),
        ({"model.dtype": "float16"}, "model.dtype 'float16'"),
        ({"text.dtype": "int8"}, "text.dtype 'int8'"),
        ({"diffusion.loss_weighting": "heavy"}, "diffusion.loss_weighting 'heavy'"),
        ({"diffusion.prediction_type": "score"}, "diffusion.prediction_type 'score'"),
        ({"diffusion.schedule": "sine"}, "diffusion.schedule 'sine'.* .*cosine"),
        ({"diffusion.aug_schedule": "none"}, "diffusion.aug_schedule 'none'"),
        ({"diffusion.variance_type": "any"}, "diffusion.variance_type 'any'.* fixed, learned"),
        ({"diffusion.min_snr_gamma": 0.0}, "diffusion.min_snr_gamma 0.0"),
        ({"diffusion.sigma_data": -0.5}, "diffusion.sigma_data -0.5"),
        ({"diffusion.vlb_weight": float("nan")}, "diffusion.vlb_weight nan"),
        ({"diffusion.cond_drop_prob": 10.0}, r"diffusion.cond_drop_prob 10.0"),
        (
            {"diffusion.null_text": "none"},
            "diffusion.null_text 'none'.* zero, empty",
        ),
        ({"model.num_res_blocks": (1, 1)}, "model.num_res_blocks has 2 entries for the 1 levels"),
        ({"model.attention_types": ()}, "model.attention_types has 0 entries for the 1 levels"),
        ({"image_size": 9}, "image_size 9 is not a multiple of 2"),
        ({"image_size": (8, 9)}, "image_size 8×9 is not a multiple of 2"),
        ({"image_size": (8, 8, 3)}, r"image_size \(8, 8, 3\)"),
        ({"model.head_channels": 3}, "model.head_channels 3 does not divide the 8 channels"),
        ({"low_res_size": 8}, "low_res_size 8 must be below image_size 8"),
        ({**WIDE, "low_res_size": (4, 12)}, "low_res_size 4×12 must be below image_size 8×12"),
        ({**WIDE, "low_res_size": 4}, "low_res_size 4×4 has another aspect ratio than image_size 8×12"),
        ({"data.crop_size": 4}, "model.positions 8 needs full images, .* set one of them to 0"),
        ({**NO_POSITIONS, "data.crop_size": 9}, r"data.crop_size 9 is not in \[1, 8\]"),
        ({**NO_POSITIONS, "data.crop_size": -4}, r"data.crop_size -4"),
        ({**NO_POSITIONS, "data.crop_size": 3}, "data.crop_size 3 is not a multiple of 2, as model.patch_size 2"),
        (
            {**NO_POSITIONS, "image_size": 12, "low_res_size": 8, "data.crop_size": 4},
            "data.crop_size 4 is not a multiple of 3: from image_size 12 to low_res_size 8",
        ),
        ({**WIDE, **NO_POSITIONS, "data.crop_size": (4, 14)}, r"data.crop_size 4×14 is not in \[1, 8×12\]"),
        ({**WIDE, **NO_POSITIONS, "data.crop_size": (3, 4)}, "data.crop_size 3×4 is not a multiple of 2"),
        (
            {**NO_POSITIONS, "image_size": (12, 24), "low_res_size": (8, 16), "data.crop_size": (6, 8)},
            "data.crop_size 6×8 is not a multiple of 3: from image_size 12×24 to .* 8×16 it would not",
        ),
        ({"diffusion.aug_level_distribution": "beta"}, "aug_level_distribution 'beta'.* uniform"),
        (
            {"diffusion.aug_level_range": (0.5, 0.2)},
            r"aug_level_range \(0.5, 0.2\)",
        ),
        ({"diffusion.aug_level_range": (0.5,)}, r"aug_level_range \(0.5,\)"),
        ({"diffusion.aug_level_range": (0.5, 1.2)}, r"aug_level_range \(0.5, 1.2\)"),
        ({"diffusion.aug_level_std": 0.0}, "aug_level_std 0.0"),
        ({"diffusion.aug_level_mean": float("inf")}, "aug_level_mean inf"),
        (
            {**NO_POSITIONS, "low_res_size": 4, "data.crop_size": 4, "diffusion.align_corners": True},
            "diffusion.align_corners enlarges a crop in another way than .* set one of them to False or 0",
        ),
        (
            {"low_res_size": 1, "diffusion.align_corners": True},
            "diffusion.align_corners needs at least 2×2 pixels, and low_res_size is 1",
        ),
        ({"text.model": "t6"}, '"t6" is neither'),
        ({"text.length": 1}, r"text.length 1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.trap("float16 overflow")
def test_a_config_that_cannot_work_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        stages.build(base_config(**changes))


@pytest.mark.parametrize("crop_size", [(4, 4), (8, 8), (8, 4), (16, 24)])
def test_crops_that_work_are_let_through(crop_size):
    config = sr_config(**{"image_size": (16, 24), "low_res_size": (4, 6), "data.crop_size": crop_size})
    assert config.training_hw == crop_size
    assert config.with_changes({"data.crop_size": (0, 0)}).training_hw == (16, 24)


def test_a_wide_stage_is_wide_from_end_to_end():
    stage = stages.build(sr_config(image_size=(16, 24), low_res_size=(8, 12)))
    assert (stage.low_res_shape, stage.image_shape) == ((8, 12, 3), (16, 24, 3))
    low_res = jnp.zeros((2, 8, 12, 3))
    condition = jax.eval_shape(stage.augment_low_res, low_res, jnp.zeros(2), low_res)
    assert condition["low_res"].shape == (2, 16, 24, 3)
    params = jax.eval_shape(stage.init, jax.random.key(0))
    # nothing in a network depends on the size
    square = jax.eval_shape(stages.build(sr_config()).init, jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.shape, params) == jax.tree.map(lambda leaf: leaf.shape, square)


def test_a_low_resolution_image_is_brought_up_as_the_config_says():
    low_res = jax.random.uniform(jax.random.key(0), (1, 8, 8, 3), minval=-1)
    stage = stages.build(sr_config(**{"diffusion.align_corners": True}))
    found = stage.augment_low_res(low_res, jnp.zeros(1), low_res)["low_res"]
    np.testing.assert_allclose(found, resize(low_res, 16, 16, align_corners=True), atol=0.02)
    assert np.abs(found - resize(low_res, 16, 16)).max() > 0.1


def test_a_crop_is_conditioned_on_at_its_own_size(sr_stage):
    """As the whole image is, wherever their borders are far."""
    low_res = jax.random.uniform(jax.random.key(0), (1, 8, 8, 3), minval=-1)
    levels, eps = jnp.full(1, 0.3), jax.random.normal(jax.random.key(1), low_res.shape)
    whole = sr_stage.augment_low_res(low_res, levels, eps)["low_res"]
    crop = sr_stage.augment_low_res(low_res[:, 2:6, :4], levels, eps[:, 2:6, :4])["low_res"]
    assert crop.shape == (1, 8, 8, 3)
    np.testing.assert_allclose(crop[:, 1:-1, :-1], whole[:, 5:11, :7], atol=1e-5)


class TestRowsThatDevicesShare:
    def test_each_device_needs_whole_rows_at_every_level(self):
        config = base_config(**{"image_size": (24, 8)})  # patches of 2 × 2 on one level: 12 rows
        for spatial in (1, 2, 3, 4, 6, 12):
            stages.check_rows(config, spatial)
        with pytest.raises(ConfigError, match="image_size 24×8 cannot be split over 8 .* its 24 rows must be a mu"):
            stages.check_rows(config, 8)

    def test_rows_of_crops_and_of_what_is_enlarged_count_too(self):
        config = sr_config(**{"image_size": 64, "low_res_size": 4, "data.crop_size": 48, "model.patch_size": 1})
        stages.check_rows(config, 4)
        with pytest.raises(ConfigError, match="data.crop_size 48 cannot be split over 32 devices .* multiple of 32"):
            stages.check_rows(config, 32)
        config = config.with_changes({"data.crop_size": 0})
        with pytest.raises(ConfigError, match="low_res_size 4.* cannot be split over 8 devices .* a multiple of 8"):
            stages.check_rows(config, 8)
