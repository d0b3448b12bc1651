"""A stage's folder keeps its config, and a run resumes there only with a compatible one."""

import json
import shutil
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.config.load import to_json
from imagen_jax.errors import ConfigError
from imagen_jax.stages import workdir as workdir_room
from imagen_jax.stages.checkpoints import Checkpoints
from imagen_jax.stages.workdir import keep_own_values, open_workdir, read_config
from imagen_jax.training.loop import train
from imagen_jax.training.state import TrainState
from imagen_jax.training.workdir_lock import check_writable
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
        ("text.padding", "encoded"),
        ("text.cleaning", "if"),
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
    (tmp_path / "config.json.sha256").unlink()
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


# The copy of the config in a checkpoint is verified.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a checkpoint. For reading only."""
    folder = tmp_path_factory.mktemp("trained") / "stage"
    open_workdir(folder, CONFIG)
    save(folder, CONFIG, 1)
    return folder


def save(folder, config, step):
    checkpoints = Checkpoints(folder, keep=2)
    array = jnp.zeros(2)
    checkpoints.save(TrainState(jnp.int32(step), {"a": array}, {"a": array}, {"a": array}), {}, config)
    checkpoints.close()


@pytest.fixture
def stage(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def read(folder):
    """The config, and what is said of it."""
    messages = []
    return read_config(folder, messages.append), messages


def edit(folder, **changes):
    config = to_json(CONFIG.with_changes(changes))
    (folder / "config.json").write_text(json.dumps(config))


def test_flipped_bits_are_named(stage, monkeypatch):
    """Whatever bit is flipped, the config is the same, and the file is named."""
    monkeypatch.setattr(workdir_room, "_WRITING_SECONDS", 0)
    for name in ("config.json", "config.json.sha256"):
        data = (stage / name).read_bytes()
        for bit in np.random.default_rng(0).integers(8 * len(data), size=300):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            (stage / name).write_bytes(flipped)
            config, messages = read(stage)
            assert config == CONFIG
            # the name beside the checksum says nothing
            assert "config.json" in messages[0] if messages else name.endswith("sha256") and bit >= 8 * 64
        (stage / name).write_bytes(data)
    assert read(stage) == (CONFIG, [])


def test_flipped_bits_without_checksum(stage):
    """As in folders of earlier versions: what differs from the checkpoint's copy is named."""
    (stage / "config.json.sha256").unlink()
    data = (stage / "config.json").read_bytes()
    for bit in np.random.default_rng(1).integers(8 * len(data), size=300):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        (stage / "config.json").write_bytes(flipped)
        config, messages = read(stage)
        assert config == CONFIG or messages


def test_config_of_a_later_start_counts(stage):
    """Until the next checkpoint it differs from the last one's copy."""
    changed = CONFIG.with_changes({"sampling.guidance_scale": 9.0, "training.steps": 99})
    open_workdir(stage, changed)
    assert read(stage) == (changed, [])


@pytest.mark.parametrize("key, value", [("diffusion.schedule_shift", 1.0), ("sampling.guidance_scale", 9.0)])
def test_edited_config_is_named(stage, key, value):
    edit(stage, **{key: value})
    config, messages = read(stage)
    assert config == CONFIG
    assert len(messages) == 1 and key in messages[0] and repr(value) in messages[0]


def test_edited_setting_without_checksum_counts(stage):
    edit(stage, **{"sampling.guidance_scale": 9.0})
    (stage / "config.json.sha256").unlink()
    config, messages = read(stage)
    assert config.sampling.guidance_scale == 9.0
    assert len(messages) == 1 and "sampling.guidance_scale" in messages[0]


def test_moved_encoder_counts(stage, tmp_path):
    (tmp_path / "encoder").mkdir()
    edit(stage, **{"text.model": str(tmp_path / "encoder")})
    config, messages = read(stage)
    assert config.text.model == str(tmp_path / "encoder")
    assert "text.model" in messages[0]


def test_missing_config_is_that_of_the_checkpoint(stage):
    (stage / "config.json").unlink()
    config, messages = read(stage)
    assert config == CONFIG and "config.json" in messages[0]
    with pytest.raises(ConfigError, match="seed was"):
        open_workdir(stage, base_config(seed=1))
    assert not (stage / "config.json").exists()
    open_workdir(stage, CONFIG)
    assert read(stage) == (CONFIG, [])


def test_newest_intact_copy_counts(stage):
    changed = CONFIG.with_changes({"sampling.guidance_scale": 9.0})
    save(stage, changed, 2)
    (stage / "config.json").write_text("{")
    assert read(stage)[0] == changed
    metadata = stage / "checkpoints" / "2" / "_CHECKPOINT_METADATA"
    metadata.write_bytes(metadata.read_bytes().replace(b"9.0", b"8.0"))
    assert read(stage)[0] == CONFIG


def test_unchanged_config_is_not_written(stage):
    before = (stage / "config.json").stat().st_mtime_ns
    open_workdir(stage, CONFIG)
    assert (stage / "config.json").stat().st_mtime_ns == before
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "config.json.sha256"], cwd=stage, check=True, capture_output=True)


@pytest.mark.parametrize("name", ["a [1]", "what?", "*"])
def test_path_that_is_a_pattern(tmp_path, name):
    with pytest.raises(ConfigError, match="--workdir"):
        check_writable(tmp_path / name)
