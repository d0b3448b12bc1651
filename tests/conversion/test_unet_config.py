"""The fields of the U-Net's config, there and back."""

import pytest

from imagen_jax.conversion import unet_config
from imagen_jax.stages.stage_folder import read_config


@pytest.mark.parametrize("stage", [0, 1])
def test_fields_say_what_the_config_says(cascade, stage):
    config = read_config(cascade / f"stage_{stage}")
    keys = unet_config.stage_keys(unet_config.unet_fields(config, 24), "it", bool(stage))
    assert config == config.with_changes(keys)
    other = config.with_changes({"model.activation": "silu", "model.cond_dim": 0, "model.dropout": 0.1})
    keys = unet_config.stage_keys(unet_config.unet_fields(other, 24), "it", bool(stage))
    assert other == config.with_changes(keys)
