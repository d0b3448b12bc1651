"""Configs under attack: whatever is wrong with one is said in sentences, all at once, before anything is built."""

import dataclasses
import random

import jax
import ml_collections
import pytest

from imagen_jax.config.rules import NETWORKS, OF_SOURCES, OPAQUE, RULES, check_values, flatten, rules_of
from imagen_jax.datasets.registry import SOURCES
from imagen_jax.errors import ConfigError, collect_errors
from imagen_jax.training.validate import check_training
from tests.faults.configs import mutated, survives
from tests.helpers.configs import ROOT, as_written, base_config, sr_config

CONFIGS = sorted(
    path.name for path in (ROOT / "configs").glob("*.py") if path.stem.split("_")[-1] not in ("eval", "text")
)
# what of a network does not stand in config.model: flax's own fields, and what follows from the rest of the config
GIVEN_FIELDS = {"parent", "name", "image_channels", "out_channels", "remat", "constrain"}


@pytest.mark.parametrize("file", CONFIGS)
def test_configs_have_each_key_that_has_a_rule_and_no_other(file):
    config = as_written(file, "").to_dict()
    check_values(config)
    flat = flatten(config, whole=OPAQUE)
    assert flat.keys() == rules_of(flat).keys()


def test_each_field_of_a_network_has_a_rule():
    fields = {field.name for network in NETWORKS.values() for field in dataclasses.fields(network)} - GIVEN_FIELDS
    assert fields | {"network"} == {key.removeprefix("model.") for key in RULES if key.startswith("model.")}


def test_each_source_has_rules():
    assert OF_SOURCES.keys() == SOURCES.keys()


def test_all_mistakes_are_told_at_once():
    config = base_config(**{"model.dtype": "float8", "training.steps": 0, "diffusion.cond_drop_prob": "often"})
    with config.unlocked():
        config.model.chanels = 8
        del config.optimizer.eps
    with pytest.raises(ConfigError) as caught:
        check_training(config)
    assert len(caught.value.problems) == 5
    for said in (
        "config.model.dtype 'float8' is not known: choose one of float32, bfloat16",
        "config.training.steps 0 must be a whole number of at least 1",
        "config.diffusion.cond_drop_prob 'often' is not in [0, 1]",
        "the config has a key 'model.chanels' that is not known: the nearest is 'model.channels'",
        "the config lacks optimizer.eps: every default stands in a config",
    ):
        assert said in str(caught.value)


def test_what_does_not_go_together_is_told_at_once():
    changes = {
        "model.head_channels": 3,
        "model.text_pool_heads": 3,
        "model.num_res_blocks": (1, 1),
        "training.batch_size": 7,
        "training.grad_accum_steps": 2,
        "optimizer.warmup_steps": 10_000,
        "sampling.guidance_interval": (0.9, 0.1),
    }
    config = base_config(**changes)
    with pytest.raises(ConfigError) as caught:
        check_training(config, jax.devices()[:1])
    assert len(caught.value.problems) == 3  # of the stage: what is built of it is not looked at before it is right
    config = base_config(**{key: value for key, value in changes.items() if not key.startswith("model")})
    config.mesh.data = 1
    with pytest.raises(ConfigError) as caught:
        check_training(config, jax.devices()[:1])
    assert len(caught.value.problems) == 3


def test_a_group_that_is_a_value_is_told_as_such():
    config = base_config()
    with config.ignore_type():
        config.model = 3
    with pytest.raises(ConfigError, match="config.model 3 must be a group of keys: network, patch"):
        check_values(config.to_dict())


def test_checks_that_all_hold_raise_nothing():
    collect_errors(lambda: 1, lambda: None)
    assert ConfigError("one").problems == ("one",)


@pytest.mark.parametrize("make", [base_config, sr_config])
def test_mutated_configs_are_refused_in_sentences_or_work(make):
    """A few of those of ``python -m tests.faults``."""
    config, rng = make(), random.Random(0)
    config.mesh.data = 1
    outcomes = [survives(mutated(config, rng)) for _ in range(250)]
    assert not [outcome for outcome in outcomes if outcome not in ("refused", "works")]
    assert outcomes.count("refused") > 100
    assert outcomes.count("works") > 20


def test_an_unchanged_config_works():
    config = base_config()
    config.mesh.data = 1
    assert survives(ml_collections.ConfigDict(config)) == "works"
