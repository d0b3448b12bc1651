"""A stage's folder keeps its config, and a run resumes there only with a compatible one."""

import json

import pytest

from imagen_jax.config.load import to_json
from imagen_jax.errors import ConfigError
from imagen_jax.stages.workdir import keep_own_values, open_workdir, read_config
from imagen_jax.training.loop import train
from tests.helpers.configs import base_config, config_of, contents

CONFIG = base_config()


@pytest.fixture
def workdir(tmp_path):
    open_workdir(tmp_path / "stage", CONFIG)
    return tmp_path / "stage"


def test_config_round_trip(workdir):
    assert to_json(read_config(workdir)) == to_json(CONFIG)


@pytest.mark.parametrize(
    "changes",
    [
        {"training.steps": 99},
        {"optimizer.learning_rate": 1e-4},
        {"sampling.guidance_scale": 9.0},
        {"mesh.data": 2, "mesh.fsdp": 4},
        {"data.threads": 7},
        {},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_changeable_keys(workdir, changes):
    changed = base_config(**changes)
    open_workdir(workdir, changed)
    assert to_json(read_config(workdir)) == to_json(changed)


def test_a_run_without_captions_may_resume(tmp_path):
    config = config_of("folder_base.py")
    open_workdir(tmp_path, config)
    open_workdir(tmp_path, config.with_changes({"data.allow_no_captions": True}))
    with pytest.raises(ConfigError, match="data.caption_suffix was '.txt' and is now '.caption'"):
        open_workdir(tmp_path, config.with_changes({"data.caption_suffix": ".caption"}))


@pytest.mark.parametrize(
    "name, value",
    [
        ("model.channels", 16),
        ("seed", 1),
        ("data.split", "validation"),
        ("text.length", 25),
        ("diffusion.null_text", "empty"),
    ],
)
def test_other_keys_must_not_change(workdir, name, value):
    before = contents(workdir)
    with pytest.raises(ConfigError, match=f"{name} was .* and is now {value!r}"):
        open_workdir(workdir, base_config(**{name: value}))
    assert contents(workdir) == before


def folder_config(**changes):
    return base_config(**{"data": {"source": "folder", "path": "photos"}, **changes})


@pytest.mark.parametrize("version", [1, 2])
def test_colors_stay_as_the_run_began(tmp_path, caplog, version):
    """Of a run of an earlier version, or of one that did not convert profiles, whatever it resumes with."""
    began = folder_config(**{"data.transform.convert_profile": False})
    open_workdir(tmp_path, began)
    tree = json.loads((tmp_path / "config.json").read_text()) | {"schema_version": version}
    if version == 1:
        del tree["data"]["transform"]["convert_profile"]
    (tmp_path / "config.json").write_text(json.dumps(tree))
    for _ in range(2):
        resumed = keep_own_values(tmp_path, folder_config())
        assert resumed == began
        open_workdir(tmp_path, resumed)
    assert all("convert_profile" in record.getMessage() for record in caplog.records)
    assert len(caplog.records) == 2
    assert keep_own_values(tmp_path, base_config()) == base_config()  # another source is refused elsewhere
    assert keep_own_values(tmp_path / "new", folder_config()) == folder_config()


def test_training_keeps_the_colors_of_its_run(tmp_path, caplog):
    open_workdir(tmp_path / "run", folder_config(**{"data.transform.convert_profile": False}))
    with pytest.raises(ConfigError, match="photos"):
        train(folder_config(), tmp_path / "run")
    assert "convert_profile" in caplog.text


def test_workdir_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="--workdir .* cannot be written"):
        open_workdir(tmp_path / "file", CONFIG)
    with pytest.raises(ConfigError, match="--workdir .* cannot be written"):
        open_workdir(tmp_path / "file" / "below", CONFIG)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_config_that_is_not_json(workdir, text):
    (workdir / "config.json").write_text(text)
    with pytest.raises(ConfigError, match="config.json"):
        read_config(workdir)


def test_missing_folder_or_config(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        read_config(tmp_path / "none")
    with pytest.raises(ConfigError, match="no config.json"):
        read_config(tmp_path)
