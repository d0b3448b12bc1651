"""Configs under attack: everything wrong is reported in sentences, all at once, before anything is built."""

import dataclasses
import random

import jax
import numpy as np
import pytest

from imagen_jax.config.data_schema import DataConfig
from imagen_jax.config.fields import groups_in
from imagen_jax.config.load import default_config, load_config
from imagen_jax.config.messages import keys_of
from imagen_jax.config.schema import EvaluationConfig, PretrainTextConfig, StageConfig
from imagen_jax.datasets.registry import SOURCES
from imagen_jax.errors import ConfigError, collect_errors
from imagen_jax.models.kl_vae import KLVAE
from imagen_jax.parallel.mesh import MESH_AXES
from imagen_jax.stages.stage import NETWORKS
from imagen_jax.training.validate import check_training
from tests.faults.configs import check_mutated, mutated
from tests.helpers.configs import base_config, config_of, sr_config

SCHEMAS = (StageConfig, EvaluationConfig, PretrainTextConfig)
# what of a network is not in config.model: flax's own fields, and what follows from the rest of the config
GIVEN_FIELDS = {"parent", "name", "image_channels", "out_channels", "remat", "lay", "constrain"}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_key_is_documented(schema):
    for key, field in keys_of(schema):
        text = field.description
        assert text and text.endswith(".") and "\n" not in text, key
        assert isinstance(field.json_schema_extra, dict), key


@pytest.mark.parametrize("schema", SCHEMAS)
def test_defaults_are_valid(schema):
    assert load_config(default_config(schema), schema=schema) == schema()


def test_each_network_field_is_a_key():
    networks = NETWORKS | {"kl_vae": KLVAE}  # a codec's is not among those that draw
    fields = {field.name for network in networks.values() for field in dataclasses.fields(network)} - GIVEN_FIELDS
    keys = {name for group in groups_in(StageConfig.model_fields["model"].annotation) for name in group.model_fields}
    assert fields | {"network"} == keys
    assert {
        group.model_fields["network"].default for group in groups_in(StageConfig.model_fields["model"].annotation)
    } == (networks.keys())


def test_each_source_has_keys():
    assert {group.model_fields["source"].default for group in groups_in(DataConfig)} == SOURCES.keys()


def test_mesh_axes_are_keys():
    assert tuple(base_config().mesh.axes) == MESH_AXES


def test_all_errors_are_reported():
    tree = base_config().to_dict()
    tree["model"]["dtype"] = "float8"
    tree["training"]["steps"] = 0
    tree["diffusion"]["cond_drop_prob"] = "often"
    tree["model"]["chanels"] = 8
    tree["optimizer"]["eps"] = None
    with pytest.raises(ConfigError) as caught:
        load_config(tree)
    assert len(caught.value.problems) == 5
    for part in (
        "model.dtype 'float8'",
        "one of float32, bfloat16",
        "training.steps 0",
        "diffusion.cond_drop_prob 'often'",
        "in [0, 1]",
        "model.chanels is not a key of the config: the nearest is model.channels",
        "optimizer.eps None",
    ):
        assert part in str(caught.value)


def test_all_misfits_are_reported():
    changes = {
        "model.head_channels": 3,
        "model.text_pool_heads": 3,
        "model.num_res_blocks": (1, 1),
        "training.batch_size": 7,
        "training.grad_accum_steps": 2,
        "optimizer.warmup_steps": 10_000,
        "sampling.s_tmin": 90.0,
    }
    with pytest.raises(ConfigError) as caught:
        base_config(**changes)
    assert len(caught.value.problems) == 5
    config = base_config(**{"training.batch_size": 7, "training.grad_accum_steps": 2, "mesh.data": 1})
    with pytest.raises(ConfigError, match="batch_size") as caught:
        check_training(config, jax.devices()[:1])
    assert len(caught.value.problems) == 1


def test_value_in_place_of_a_group():
    with pytest.raises(ConfigError, match="model 3 .* group of keys.* patch_size"):
        load_config(base_config().to_dict() | {"model": 3})


def test_collect_errors_without_errors():
    collect_errors(lambda: 1, lambda: None)
    assert ConfigError("one").problems == ("one",)


@pytest.mark.parametrize("make", [base_config, sr_config])
def test_mutated_configs_are_refused_or_work(make):
    """A few of those of `python -m tests.faults`."""
    config, rng = make(**{"mesh.data": 1}), random.Random(0)
    outcomes = [check_mutated(mutated(config, rng)) for _ in range(250)]
    assert not [outcome for outcome in outcomes if outcome not in ("refused", "works")]
    assert outcomes.count("refused") > 100
    assert outcomes.count("works") > 20


def test_an_unchanged_config_works():
    assert check_mutated(base_config(**{"mesh.data": 1})) == "works"


@pytest.mark.parametrize(
    "key, value",
    [
        ("seed", True),
        ("seed", 1.0),
        ("seed", "1"),
        ("seed", np.int64(1)),
        ("optimizer.learning_rate", True),
        ("optimizer.learning_rate", "0.1"),
        ("optimizer.learning_rate", float("nan")),
        ("sampling.guidance_scale", float("inf")),
        ("sampling.s_tmax", float("nan")),
        ("model.input_skip", 1),
        ("model.channel_mult", (True,)),
        ("data.bits", True),
        ("text.model", ""),
        ("text.cache", "a\0b"),
        ("image_size", (8, 8, 8)),
        ("image_size", 10_000),
        ("sharding_rules", (("(", ("data",)),)),
        ("sampling.guidance_interval", (0.5, 0.5)),
        ("diffusion.aug_level_range", (0.5, 1.5)),
    ],
)
def test_types_are_strict(key, value):
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        base_config(**{key: value})


def test_numbers_fit_float32():
    config = base_config()
    floats = [key for key, field in keys_of(StageConfig, config.to_dict()) if field.annotation is float]
    assert len(floats) > 20
    for key in floats:
        with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
            base_config(**{key: 1e300})
    assert base_config(**{"model.skip_scale": 1e30}).model.skip_scale == 1e30


@pytest.mark.parametrize("key", ["seed", "data.seed"])
def test_seeds_have_64_bits(key):
    assert base_config(**{key: 2**64 - 1}).to_dict()
    for seed in (-1, 2**64):
        with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
            base_config(**{key: seed})


def test_conversions():
    config = base_config(**{"optimizer.learning_rate": 1, "model.channel_mult": [1], "sampling.s_tmax": float("inf")})
    assert isinstance(config.optimizer.learning_rate, float) and config.model.channel_mult == (1,)
    assert base_config(image_size=[8, 16]).image_hw == (8, 16)
    assert base_config(image_size=8).image_hw == (8, 8)


def test_configs_are_immutable():
    with pytest.raises(ValueError, match="frozen"):
        base_config().seed = 1


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"channels": 2}, "channels 2"),
        ({"data.transform.crop": "middle"}, "data.transform.crop 'middle'.* center, random"),
        ({"data.bits": 12}, "data.bits 12.* 8, 16"),
        ({"data.transform.background": 256}, "background 256"),
        ({"data.transform.background": (1, 2)}, r"background \(1, 2\)"),
        ({"data.transform.max_pixels": 63, "image_size": 8}, "max_pixels 63.*image_size"),
        ({"data.max_corrupt": -1.0}, "data.max_corrupt -1.0"),
        ({"data.validation_fraction": 2.0}, "data.validation_fraction 2.0"),
        ({"data.balance": {"column": "a", "weights": (("b", 0),)}}, "data.balance.weights"),
        ({"data.caption_suffix": "caption"}, "data.caption_suffix 'caption'"),
        ({"data.caption_suffix": (".txt", "../.txt")}, "data.caption_suffix"),
        ({"data.caption_files": "paragraphs"}, "data.caption_files 'paragraphs'.* lines, whole"),
    ],
)
def test_data_of_files_are_checked(changes, match):
    with pytest.raises(ConfigError, match=match):
        config_of("folder_base.py", **changes)


@pytest.mark.parametrize("factor", [-1.0, 0.5, 1.0, float("inf"), float("nan")])
def test_spike_factors(factor):
    with pytest.raises(ConfigError, match="optimizer.spike_factor"):
        base_config(**{"optimizer.spike_factor": factor})


@pytest.mark.parametrize(
    "parts, match",
    [
        ({}, "data.parts"),
        ({"a": 3}, "data.parts.a"),
        ({"a": {"source": "digits"}}, "data.parts.a.weight is missing"),
        ({"a": {"weight": 1.0}}, "data.parts.a.source is missing"),
        ({"a": {"source": "digit", "weight": 1.0}}, "data.parts.a.source 'digit'"),
        ({"a": {"source": "digits", "weight": -1}}, "data.parts.a.weight -1"),
        ({"a": {"source": "digits", "weight": float("nan")}}, "data.parts.a.weight nan"),
        ({"a": {"source": "digits", "weight": "1"}}, "data.parts.a.weight '1'"),
        ({"a": {"source": "digits", "weight": 1, "path": "x"}}, "data.parts.a.path"),
        ({"a": {"source": "digits", "weight": 1, "balance": {"weights": ()}}}, "data.parts.a.balance.column"),
    ],
)
def test_parts_are_checked(parts, match):
    with pytest.raises(ConfigError, match=match):
        base_config(**{"data.source": "mixture", "data.parts": parts})
