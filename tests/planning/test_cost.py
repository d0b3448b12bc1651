import jax
import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.planning.cost import cost
from imagen_jax.planning.flops import count_flops
from imagen_jax.stages import stage as stages
from tests.helpers.configs import sr_config

pytest_plugins = ("tests.helpers.fixtures",)


@pytest.mark.parametrize("name", ["base_stage", "sr_stage"])
def test_the_cost_is_that_of_the_stage_itself(name, request):
    stage = request.getfixturevalue(name)
    counted = cost(stage.config, stage.encoder.width)
    params = jax.eval_shape(stage.init, jax.random.key(0))
    assert counted.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    arguments = stages.network_arguments(stage.config, stage.encoder.width, stage.image_shape[:2])
    forward = count_flops(jax.make_jaxpr(stage.network.apply)({"params": params}, *arguments))
    assert counted.training_flops == 3 * forward > 0


def test_the_text_encoder_is_not_needed_but_its_width_counts():
    config = sr_config(**{"text.model": "no/such/folder"})
    narrow, wide = cost(config, 8), cost(config, 16)
    assert narrow.parameters < wide.parameters
    assert narrow.training_flops < wide.training_flops


def test_a_crop_costs_what_an_image_of_its_size_costs():
    crop = cost(sr_config(**{"image_size": 16, "low_res_size": 8, "data.crop_size": 8}), 8)
    assert crop == cost(sr_config(**{"image_size": 8, "low_res_size": 4}), 8)
    assert crop.training_flops < cost(sr_config(), 8).training_flops


def test_a_config_that_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="config.model.network 'vit' is not known"):
        cost(sr_config(**{"model.network": "vit"}), 8)
