"""Config files, overrides of a command line, saved configs."""

import json

import ml_collections
import pytest

from imagen_jax.config.document import describe, diff, reference_markdown
from imagen_jax.config.load import default_config, from_json, load_config, to_json
from imagen_jax.config.schema import SCHEMA_VERSION, EvaluationConfig, StageConfig
from imagen_jax.errors import ConfigError
from tests.helpers.configs import ROOT, base_config, sr_config

BASE = ROOT / "configs" / "shapes_base.py"


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "config.py"
        path.write_text(text)
        return str(path)

    return write


def test_sources():
    config = load_config(f"{BASE}:tiny")
    assert config == load_config(config) == load_config(config.to_dict()) == load_config(to_json(config))
    assert config == load_config(ml_collections.ConfigDict(config.to_dict()))
    assert config.model.channels == 16 and load_config(BASE).model.channels == 64


def test_packaged_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/shapes_base.py:tiny") == load_config(f"{BASE}:tiny")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "shapes_base.py").write_text("def get_config():\n    return {'seed': 5}\n")
    assert load_config("configs/shapes_base.py").seed == 5


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.py").write_text("def get_config():\n    return {'seed': 5}\n")
    assert load_config("~/own.py").seed == 5


def test_json_files_are_loaded(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_json(base_config())))
    assert load_config(tmp_path / "config.json") == base_config()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="JSON"):
        load_config(tmp_path / "config.json")


@pytest.mark.parametrize(
    "text, match",
    [
        ("def get_config(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("import no_such_module_at_all", "ModuleNotFoundError"),
        ("config = {}", "get_config"),
        ("get_config = 3", "get_config"),
        ("def get_config():\n    raise ValueError('no')", "ValueError: no"),
        ("def get_config():\n    return 3", "int"),
        ("def get_config():\n    return {'sed': 3}", "sed is not a key of the config: the nearest is seed"),
        ("def get_config():\n    return {'model': 3}", "model 3"),
        ("def get_config():\n    return {'diffusion': {'prediction': 'x'}}", "is now diffusion.prediction_type"),
        ("def get_config():\n    return {'training': {'on_failed_save': 'go on'}}", "is now 'continue'"),
    ],
)
def test_files_that_cannot_be_used(file, text, match):
    with pytest.raises(ConfigError, match=match) as caught:
        load_config(file(text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["", "none.py", "configs/none.py", "configs", "/", "none.json", "none.py:tiny"])
def test_files_that_do_not_exist(source):
    with pytest.raises(ConfigError, match=r"does not exist|is a folder"):
        load_config(source)


def test_unknown_variants():
    with pytest.raises(
        ConfigError, match="has no variant 'huge': give none, or :long, :inpaint, :wide, :transparent, :tiny"
    ):
        load_config(f"{BASE}:huge")
    with pytest.raises(ConfigError, match="takes no variant"):
        load_config(f"{ROOT / 'configs' / 'shapes_eval.py'}:huge", schema=EvaluationConfig)


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("training.steps", "7", 7),
        ("image_size", "(48,64)", (48, 64)),
        ("image_size", "64", 64),
        ("text.model", "7", "7"),
        ("text.cache", "", ""),
        ("optimizer.learning_rate", "1e-3", 1e-3),
        ("optimizer.learning_rate", "1", 1.0),
        ("sampling.s_tmax", "inf", float("inf")),
        ("model.input_skip", "true", True),
        ("model.input_skip", "False", False),
        ("model.middle_attention_types", "('text',)", ("text",)),
    ],
)
def test_overrides_are_read_by_type(key, text, value):
    config = load_config(BASE, {key: text}).to_dict()
    for name in key.split("."):
        config = config[name]
    assert config == value and type(config) is type(value)


@pytest.mark.parametrize(
    "key, text",
    [
        ("training.steps", "seven"),
        ("training.steps", "1.5"),
        ("training.step", "1"),
        ("modl.channels", "8"),
        ("model", "3"),
        ("seed.x", "3"),
        ("image_size", "48x64"),
        ("model.input_skip", "maybe"),
        ("model.input_skip", "1"),
        ("training.steps", "(" * 300),
        ("data.path", "x"),
    ],
)
def test_wrong_overrides(key, text):
    with pytest.raises(ConfigError, match=key.split(".")[0]) as caught:
        load_config(BASE, {key: text})
    assert "\n" not in str(caught.value)


def test_all_wrong_overrides_are_reported():
    with pytest.raises(ConfigError) as caught:
        load_config(BASE, {"training.steps": "no", "training.stepz": "1", "seed": "-1"})
    assert len(caught.value.problems) == 3


def test_a_new_source_or_network_replaces_its_keys():
    config = load_config(BASE, {"data.path": "images", "data.source": "folder", "model.network": "efficient_unet"})
    assert config.data.path == "images" and config.data.threads == 2
    assert not hasattr(config.data, "transparent") and not hasattr(config.model, "middle_attention_types")


def test_with_changes():
    config = base_config()
    changed = config.with_changes({"training.steps": 9, "image_size": (8, 16)}, seed=3)
    assert (changed.training.steps, changed.image_hw, changed.seed) == (9, (8, 16), 3)
    assert config.with_changes({}) == config != changed
    assert changed.training.with_changes(steps=config.training.steps) == config.training
    with pytest.raises(ConfigError, match="stepz"):
        config.with_changes({"training.stepz": 9})


@pytest.mark.parametrize("make", [base_config, sr_config])
def test_json_round_trip(make):
    saved = json.loads(json.dumps(to_json(make())))
    assert saved["schema_version"] == SCHEMA_VERSION
    assert from_json(saved) == make()


def test_properties():
    config = sr_config()
    assert config.is_super_resolution and not base_config().is_super_resolution
    assert (config.image_hw, config.low_res_hw, config.training_hw) == ((16, 16), (8, 8), (16, 16))
    assert config.with_changes({"data.crop_size": 8}).training_hw == (8, 8)


def test_describe_marks_what_is_not_default():
    lines = describe(base_config(**{"training.steps": 9})).splitlines()
    assert "* training.steps = 9" in lines and "  training.grad_accum_steps = 1" in lines
    assert not [line for line in describe(StageConfig()).splitlines() if line.startswith("*")]


def test_diff():
    assert diff(base_config(), base_config(seed=3)).split() == ["seed", "0", "->", "3"]
    assert diff(base_config(), base_config()) == "the configs are equal"


def test_the_reference_is_up_to_date():
    """`imagen config --reference > docs/configuration.md` writes it."""
    assert (ROOT / "docs" / "configuration.md").read_text() == reference_markdown()


def test_default_config_is_open():
    config = default_config(source="folder", network="efficient_unet")
    config.image_size = (32, 48)
    config.data.path = "images"
    loaded = load_config(config)
    assert loaded.image_hw == (32, 48) and loaded.data.source == "folder"
