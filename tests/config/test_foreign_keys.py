"""Keys that another source or network has are named as such, alike in every command that reads a config."""

import json

import pytest

from imagen_jax.config.load import default_config, load_config, to_json
from imagen_jax.config.schema import EvaluationConfig
from imagen_jax.errors import ConfigError
from tests.helpers.cli import run_command
from tests.helpers.configs import ROOT

LEFT_OVER = (
    "data.caption_column, data.caption_suffix, data.captions_from_file_names, data.objects_suffix, data.path and "
    "data.validation_fraction do not go"
)
FOLDER = ROOT / "configs" / "folder_base.py"
SHARDS = {"train": "shards", "validation": "shards"}


def with_source(source, schema=None, **keys):
    """Returns a config of a folder whose source was changed, and its keys not."""
    config = default_config(schema, source="folder") if schema else default_config(source="folder")
    config.data.update(source=source, **keys)
    return config


def problems(source, **arguments):
    with pytest.raises(ConfigError) as caught:
        load_config(source, **arguments)
    return caught.value.problems


def test_all_keys_of_a_group_in_one_sentence():
    (problem,) = problems(with_source("webdataset", shards=SHARDS))
    assert LEFT_OVER in problem
    assert (
        "data.source 'webdataset'" in problem
        and "shards" in problem
        and "default_config(source='webdataset')" in problem
    )


def test_the_advice_works():
    config = default_config(source="folder")
    config.data = default_config(source="webdataset").data
    config.data.shards = SHARDS
    assert load_config(config).data.shards == SHARDS
    overrides = {"data.shards": str(SHARDS), "data.source": "webdataset"}
    assert load_config(f"{FOLDER}:tiny", overrides).data.shards == SHARDS


def test_keys_of_files_with_a_source_that_renders():
    (problem,) = problems(with_source("shapes", schema=EvaluationConfig), schema=EvaluationConfig)
    assert all(f"data.{name}" in problem for name in ("path", "transform", "buckets", "max_corrupt"))


def test_network():
    config = default_config()
    config.model.network = "efficient_unet"
    (problem,) = problems(config)
    assert "model.middle_attention_types does not go with model.network 'efficient_unet'" in problem


def test_saved_config():
    tree = json.loads(json.dumps(to_json(load_config(f"{FOLDER}:tiny"))))
    tree["data"]["shards"] = SHARDS
    (problem,) = problems(tree)
    assert "data.shards does not go with data.source 'folder'" in problem


def test_parts_of_a_mixture():
    config = default_config(source="mixture")
    config.data.parts = {
        "shards": {"source": "webdataset", "weight": 1.0, "shards": SHARDS, "path": "x"},
        "digits": {"source": "digits", "weight": 1.0, "wieght": 2.0},
    }
    mistyped, foreign = problems(config)
    assert "data.parts.shards.path does not go with data.parts.shards.source 'webdataset'" in foreign
    assert "data.parts.digits.wieght is not a key" in mistyped


def test_unknown_keys_still_have_the_nearest_one():
    assert "the nearest is data.path" in problems(with_source("folder", pat="x"))[0]


@pytest.mark.parametrize("order", [1, -1])
def test_a_key_of_the_command_line_is_never_dropped(order):
    overrides = {"data.path": "photos", "data.source": "webdataset", "data.shards": str(SHARDS)}
    (problem,) = problems(f"{FOLDER}:tiny", overrides=dict([*overrides.items()][::order]))
    assert "data.path does not go" in problem


@pytest.mark.parametrize(
    "command",
    [
        ("inspect", "--out=out"),
        ("embed", "--out=out"),
        ("train", "--workdir=out"),
        ("plan", "--topology=v4:2x2x1"),
        ("config",),
        ("evaluate", "--stages=none", "--out=out"),
    ],
    ids=lambda command: command[0],
)
def test_every_command_refuses_alike(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    schema = ", schema=EvaluationConfig" if command[0] == "evaluate" else ""
    (tmp_path / "mine.py").write_text(
        "from imagen_jax.config.load import default_config\n"
        "from imagen_jax.config.schema import EvaluationConfig, StageConfig\n"
        "def get_config():\n"
        f"    config = default_config(source='folder'{schema})\n"
        "    config.data.update(source='webdataset', shards={'train': 'shards'})\n"
        "    return config\n"
    )
    assert run_command(command[0], "--config=mine.py", *command[1:]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert LEFT_OVER in error
    assert not (tmp_path / "out").exists()


def test_keys_of_a_source_that_is_misspelled():
    """The keys are compared with those of the default source."""
    tree = {"data": {"soource": "folder", "path": "x", "caption_column": "text"}}
    with pytest.raises(ConfigError) as raised:
        load_config(tree)
    text = " ".join(raised.value.problems)
    assert "data.soource is not a key" in text and "do not go with data.source 'shapes'" in text
