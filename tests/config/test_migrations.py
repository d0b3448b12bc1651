"""Saved configs of earlier versions are loaded, whatever keys have been added or renamed since."""

import json
import tarfile

import pytest

from imagen_jax.config.load import from_json, load_config, to_json
from imagen_jax.config.migrations import OLD_VALUES, RENAMED, migrate
from imagen_jax.config.schema import SCHEMA_VERSION
from imagen_jax.errors import ConfigError
from tests.helpers.configs import ROOT, base_config

# what every saved config has, and what version 0 called keys of a sampling group
SKELETON = {"image_size": 64, "channels": 3, "data": {}, "text": {}, "model": {}, "diffusion": {}}
OLD_SAMPLING = {"churn_range": [0.1, 2.0], "guidance_from": 0.2, "guidance_to": 0.8, "steps": 3, "grid": "karras"}


@pytest.mark.parametrize("name", ["base", "sr"])
def test_fixture_configs(name):
    with tarfile.open(ROOT / "tests" / "fixtures" / "stages_v0.tar.xz") as archive:
        member = next(name_ for name_ in archive.getnames() if name_.endswith(f"{name}/config.json"))
        old = json.load(archive.extractfile(member))
    config = from_json(old)
    assert config.model.channel_mult == tuple(old["model"]["multipliers"])
    assert config.sampling.num_inference_steps == old["sampling"]["steps"]
    assert from_json(to_json(config)) == config


def test_renamed_sampling_keys():
    sampling = from_json(SKELETON | {"sampling": OLD_SAMPLING}).sampling
    assert (sampling.s_tmin, sampling.s_tmax, sampling.guidance_interval) == (0.1, 2.0, (0.2, 0.8))
    assert (sampling.num_inference_steps, sampling.timestep_spacing) == (3, "karras")


def test_renamed_values():
    old = {"data": {"source": "folder", "transform": {"crop": "centre"}}, "training": {"on_failed_save": "go on"}}
    config = from_json(SKELETON | old)
    assert (config.data.transform.crop, config.training.on_failed_save) == ("center", "continue")
    assert {new for _, new in OLD_VALUES.values()} == {"center", "continue"}


def test_parts_of_mixtures():
    part = {"source": "folder", "path": "x", "validation_share": 0.5, "caption_column": "text", "weight": 1, "other": 3}
    nested = {"source": "mixture", "parts": {"b": dict(part)}, "weight": 2}
    data = from_json(SKELETON | {"data": {"source": "mixture", "parts": {"a": part, "more": nested}}}).data
    assert data.parts["a"].validation_fraction == data.parts["more"].parts["b"].validation_fraction == 0.5


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("source", ["folder", "tfds", "webdataset", "mixture"])
def test_earlier_versions_do_not_convert_profiles(version, source):
    part = {"source": "shapes", "weight": 1.0}
    needs = {"webdataset": {"shards": {"train": "x"}}, "mixture": {"parts": {"a": part}}}.get(source, {})
    tree = SKELETON | {"schema_version": version, "data": {"source": source, **needs}}
    assert not from_json(tree).data.transform.convert_profile
    tree["data"]["transform"] = {"flip": True}
    assert from_json(tree).data.transform.flip
    assert not from_json(tree).data.transform.convert_profile
    tree["data"]["transform"] = {"convert_profile": True}
    assert from_json(tree | {"schema_version": SCHEMA_VERSION}).data.transform.convert_profile


def test_missing_keys_get_defaults():
    saved = to_json(base_config())
    del saved["sampling"]["eta"], saved["mesh"]
    assert from_json(saved) == base_config()


def test_every_old_name_leads_to_a_key():
    for old, new in RENAMED.items():
        with pytest.raises(ConfigError, match="is now"):
            load_config(base_config(), {old: "1"}) if "." in old else load_config({old: 1})
        assert new


def test_old_names_are_refused_in_new_files():
    with pytest.raises(ConfigError, match="sampling.steps is now sampling.num_inference_steps"):
        from_json(SKELETON | {"schema_version": 1, "sampling": {"steps": 3}})


def test_unknown_keys_are_refused():
    with pytest.raises(ConfigError, match="model.chanels is not a key of the config: the nearest is model.channels"):
        from_json(SKELETON | {"model": {"chanels": 3}})


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 10**9])
def test_later_versions(version):
    with pytest.raises(ConfigError, match=f"schema_version {version} is later than {SCHEMA_VERSION}.* upgrade"):
        from_json(to_json(base_config()) | {"schema_version": version})


@pytest.mark.parametrize("version", [-1, "1", None, True, 1.5])
def test_versions_that_are_none(version):
    with pytest.raises(ConfigError, match="schema_version"):
        from_json({"schema_version": version})


@pytest.mark.parametrize("tree", [None, 3, [], "config", {"data": 3}, {"data": {"parts": 3, "source": "mixture"}}])
def test_trees_that_are_no_config(tree):
    with pytest.raises(ConfigError):
        from_json(tree)


def test_the_input_is_not_changed():
    old = SKELETON | {"sampling": dict(OLD_SAMPLING)}
    migrate(old)
    assert old == SKELETON | {"sampling": OLD_SAMPLING}
