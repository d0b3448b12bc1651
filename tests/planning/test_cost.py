import jax
import jax.numpy as jnp
import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.planning.cost import stage_cost
from imagen_jax.planning.flops import count_flops
from imagen_jax.stages import stage as stages
from imagen_jax.stages.codec import CODEC
from imagen_jax.stages.codec_loss import CodecModel
from tests.helpers.configs import codec_config, latent_config, sr_config

pytest_plugins = ("tests.helpers.fixtures",)


@pytest.mark.parametrize("name", ["base_stage", "sr_stage"])
def test_cost_matches_stage(name, request):
    stage = request.getfixturevalue(name)
    cost = stage_cost(stage.config, stage.text_width)
    params = jax.eval_shape(stage.init, jax.random.key(0))
    assert cost.num_params == sum(leaf.size for leaf in jax.tree.leaves(params))
    arguments = stages.network_arguments(stage.config, stage.text_width, stage.image_shape[:2])
    forward = count_flops(jax.make_jaxpr(stage.network.apply)({"params": params}, *arguments))
    assert cost.training_flops == 3 * forward > 0


def test_cost_of_latents_is_that_of_the_network_and_of_encoding():
    stage = stages.build(latent_config(""))
    cost, params = stage_cost(stage.config, stage.text_width), jax.eval_shape(stage.init, jax.random.key(0))
    assert cost.num_params == sum(leaf.size for leaf in jax.tree.leaves(params))
    arguments = stages.network_arguments(stage.config, stage.text_width, stage.image_shape[:2])
    assert arguments[0].shape == (1, *stage.z_shape(stage.image_shape[:2])) == (1, 4, 4, 2)
    network = {name: value for name, value in params.items() if name != CODEC}
    forward = count_flops(jax.make_jaxpr(stage.network.apply)({"params": network}, *arguments))
    image = jax.ShapeDtypeStruct((1, *stage.image_shape), jnp.float32)
    encoding = count_flops(jax.make_jaxpr(stage.encode)(params, image))
    assert cost.training_flops == 3 * forward + encoding > 3 * forward > 0


def test_cost_of_a_codec_has_the_discriminator():
    config = codec_config()
    alone = stage_cost(config.with_changes({"reconstruction.disc_weight": 0.0}), 0)
    both, params = stage_cost(config, 0), jax.eval_shape(CodecModel.of(config).init, jax.random.key(0))
    assert both.num_params == sum(leaf.size for leaf in jax.tree.leaves(params)) > alone.num_params
    assert both.training_flops > alone.training_flops > 0


def test_cost_needs_text_width_only():
    config = sr_config(**{"text.model": "no/such/folder"})
    narrow, wide = stage_cost(config, 8), stage_cost(config, 16)
    assert narrow.num_params < wide.num_params
    assert narrow.training_flops < wide.training_flops


def test_crop_costs_like_image_of_its_size():
    crop = stage_cost(sr_config(**{"image_size": 16, "low_res_size": 8, "data.crop_size": 8}), 8)
    assert crop == stage_cost(sr_config(**{"image_size": 8, "low_res_size": 4}), 8)
    assert crop.training_flops < stage_cost(sr_config(), 8).training_flops


def test_invalid_config_raises():
    with pytest.raises(ConfigError, match="vit"):
        stage_cost(sr_config(**{"model.network": "vit"}), 8)
