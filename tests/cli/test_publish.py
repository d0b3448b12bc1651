"""`imagen publish`, and what it writes in the place of stage folders in every command."""

import jax
import numpy as np
import pytest

from imagen_jax import train
from imagen_jax.cli.publish import _read_size
from imagen_jax.errors import ConfigError
from imagen_jax.images.grid import read_png
from imagen_jax.io.paths import as_path
from imagen_jax.stages.published import INDEX
from tests.helpers.cli import run_command
from tests.helpers.configs import ROOT, STEPS, base_config, contents, one_device, restored, sr_config

pytest_plugins = ("tests.helpers.fixtures",)


def sample(stages, out, *arguments):
    assert run_command("sample", f"--stages={stages}", f"--out={out}", *arguments) == 0
    return out / "images" / "0000.png"


@pytest.mark.slow
def test_like_works_across_stage_folders_and_published_ones(base_folder, sr_folder, published_folder, tmp_path):
    first = sample(f"{base_folder},{sr_folder}", tmp_path / "a", "--prompts=a ring", "--seed=5")
    again = sample(published_folder, tmp_path / "b", f"--like={first}")
    back = sample(f"{base_folder},{sr_folder}", tmp_path / "c", f"--like={again}")
    assert first.read_bytes() == again.read_bytes() == back.read_bytes()


def test_publish_reads_and_writes_a_bucket(bucket, published_folder, tmp_path, monkeypatch):
    from imagen_jax.io import local_copy

    monkeypatch.setattr(local_copy, "CACHE", str(tmp_path / "cache"))
    out = bucket / "cascade"
    command = ("publish", f"--stages={published_folder}", f"--out={out}", "--prompts=a ring; a red circle")
    assert run_command(*command, "--license=mit", "--max_shard_size=1GB") == 0
    assert run_command(*command) == 2
    names = {str(path)[len(str(out)) + 1 :] for stage in ("stage_0", "stage_1") for path in (out / stage).iterdir()}
    assert names == {f"stage_{i}/{file}" for i in (0, 1) for file in ("config.json", "model.safetensors")}
    ours = sample(published_folder, tmp_path / "a", "--prompts=a ring")
    theirs = sample(out, tmp_path / "b", "--prompts=a ring")
    np.testing.assert_array_equal(read_png(ours), read_png(theirs))
    copied = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert copied == {INDEX, "SHA256SUMS", "config.json", "model.safetensors"}
    data = bytearray((out / "stage_1/model.safetensors").read_bytes())
    data[-1] ^= 1
    as_path(f"{out}/stage_1/model.safetensors").write_bytes(bytes(data))
    assert run_command("sample", f"--stages={out}", "--prompts=a", f"--out={tmp_path / 'c'}") == 2


@pytest.mark.slow
def test_a_published_stage_is_where_training_starts(published_folder, base_folder, tmp_path):
    states = []
    for name, folder in (("a", published_folder / "stage_0"), ("b", base_folder)):
        config = base_config(**{"training.init_from": str(folder), "training.steps": 1})
        train(config, tmp_path / name)
        states.append(restored(tmp_path / name, config, one_device())[0])
    jax.tree.map(np.testing.assert_array_equal, states[0].params, states[1].params)
    with pytest.raises(ConfigError, match="training.init_from.*2 stages.*stage_0"):
        train(sr_config(**{"training.init_from": str(published_folder)}), tmp_path / "c")


@pytest.mark.parametrize("text, size", [("4GB", 4 * 10**9), ("500mb", 5 * 10**8), (" 1KB", 1000), ("7B", 7)])
def test_sizes(text, size):
    assert _read_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1.5GB", "4", "4 GiB", "\x1b[2J", "9" * 5000 + "B"])
def test_invalid_sizes(text):
    with pytest.raises(ConfigError, match="--max_shard_size"):
        _read_size(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--stages=shapes"],
        ["--out=OUT"],
        ["--stages=shapes", "--out=OUT", "--max_shard_size=big"],
        ["--stages=nowhere", "--out=OUT"],
        ["--stages=shapes", "--out=OUT", "--push=nobody"],
        ["--stages=shapes", "--out=OUT", "--weights=raw"],
        ["--stages=shapes,shapes", "--out=OUT"],
        [f"--stages=shapes/stage_{STEPS}", "--out=OUT"],
        [f"--stages={ROOT}/README.md", "--out=OUT"],
    ],
    ids=str,
)
def test_wrong_use_is_one_sentence(tmp_path, capsys, arguments):
    assert run_command("publish", *(argument.replace("OUT", str(tmp_path / "out")) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    assert contents(tmp_path) == {}
