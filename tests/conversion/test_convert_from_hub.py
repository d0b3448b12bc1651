"""Pipelines on the Hub, from a server of its interface on this machine: one variant is downloaded, and nothing else."""

import json
import shlex
import shutil

import huggingface_hub
import pytest
from huggingface_hub import constants

from imagen_jax.conversion.from_diffusers import ConvertSettings, convert
from imagen_jax.errors import ConfigError
from tests.goldens.if_pipelines.cases import FIRST, HALF, SECOND
from tests.helpers.configs import contents

pytest_plugins = ("tests.helpers.hub",)
NAMES = ["ann/first", "ann/second"]


@pytest.fixture
def both(hub, tmp_path):
    """A Hub with both stages, the first in two variants, with all that repositories have besides."""
    first = shutil.copytree(FIRST, tmp_path / "first")
    shutil.copytree(HALF, first, dirs_exist_ok=True)
    others = {
        "unet/diffusion_pytorch_model.bin": b"pickled",
        "tokenizer/other.bin": b"pickled",
        "safety_checker/model.safetensors": b"large",
        "text_encoder/pytorch_model.bin": b"pickled",
    }
    hub.add(NAMES[0], first, **others)
    hub.add(NAMES[1], SECOND, **others)
    return hub


def refused(names, out, **settings):
    with pytest.raises(ConfigError) as error:
        convert(names, out, ConvertSettings(**settings))
    assert "\n" not in str(error.value) and not out.exists()
    return str(error.value)


def test_one_variant_is_downloaded(both, tmp_path, monkeypatch):
    assert "--variant=fp16" in refused(NAMES[:1], tmp_path / "out")
    converted = convert(NAMES[:1], tmp_path / "out", ConvertSettings(variant="fp16"))
    downloaded = both.downloaded()
    assert {name for name in downloaded if name.endswith(".safetensors")} == {
        f"{folder}/{path.name}" for folder in ("unet", "text_encoder") for path in (HALF / folder).glob("*.safetensors")
    }
    assert not [name for name in downloaded if name.endswith(".bin")]
    # and again, without a network
    both.repositories.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    convert(NAMES[:1], tmp_path / "again", ConvertSettings(variant="fp16"))
    ours, theirs = (contents(tmp_path / name / "stage_0") for name in ("out", "again"))
    assert ours == theirs
    assert converted.out == tmp_path / "out"
    assert "$HF_HUB_OFFLINE is set" in refused(["ann/other"], tmp_path / "other")


def test_the_second_stage_takes_the_text_encoder_of_the_first(both, tmp_path):
    both.add(NAMES[0], FIRST)
    convert(NAMES, tmp_path / "out")
    texts = [path for method, path in both.log if method == "GET" and "text_encoder/model" in path]
    assert texts and not [path for path in texts if NAMES[1] in path]


def changed_config(**changes):
    return json.dumps(json.loads((FIRST / "text_encoder/config.json").read_text()) | changes).encode()


WEIGHTS = (FIRST / "text_encoder/model.safetensors").read_bytes()
OTHERS = {
    "config": ({"text_encoder/config.json": changed_config(num_heads=8)}, "num_heads 8 instead of"),
    "vocabulary": ({"tokenizer/tokenizer.json": b"{}"}, "another tokenizer.json"),
    "weights": ({"text_encoder/model.safetensors": WEIGHTS[:-1] + b"x"}, "model.safetensors is another file"),
}


@pytest.mark.parametrize("files, message", OTHERS.values(), ids=OTHERS)
def test_another_text_encoder_is_refused(both, tmp_path, files, message):
    both.add(NAMES[0], FIRST)
    both.add(NAMES[1], SECOND, **files)
    assert message in refused(NAMES, tmp_path / "out")
    texts = [path for method, path in both.log if method == "GET" and "text_encoder/model" in path]
    assert not [path for path in texts if NAMES[1] in path]


def test_a_text_encoder_is_compared_with_a_folder_by_size(both, tmp_path):
    both.add(NAMES[1], SECOND, **{"text_encoder/model.safetensors": WEIGHTS + b"x"})
    assert "is another file" in refused([str(FIRST), NAMES[1]], tmp_path / "out")
    both.add(NAMES[1], SECOND)
    convert([str(FIRST), NAMES[1]], tmp_path / "out")


def test_what_is_not_compared_is_said(both, tmp_path, caplog):
    """Other fields of config.json, such as the version that wrote it, make no difference."""
    both.add(NAMES[0], FIRST)
    names = {"text_encoder/model.safetensors": None, "text_encoder/model.fp16.safetensors": WEIGHTS}
    both.add(NAMES[1], SECOND, **names, **{"text_encoder/config.json": changed_config(transformers_version="1.0")})
    convert(NAMES, tmp_path / "out")
    (text,) = [record.getMessage() for record in caplog.records if "compared" in record.getMessage()]
    assert "ann/second" in text and "the Hub lists no model.safetensors" in text


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"])
def test_a_damaged_download_is_refused_by_name(both, tmp_path, file):
    """In the Hub's cache, where the name of a file is its checksum, and in a folder, which has it beside the files."""
    both.add(NAMES[0], FIRST)
    convert(NAMES[:1], tmp_path / "out")
    (cached,) = (tmp_path / "cache").glob(f"models--ann--first/snapshots/*/{file}")
    folder = tmp_path / "folder"
    huggingface_hub.snapshot_download(NAMES[0], local_dir=folder, revision=both.repositories[NAMES[0]].refs["main"])
    convert([str(folder)], tmp_path / "of_folder")
    ours, theirs = (contents(tmp_path / name / "stage_0") for name in ("out", "of_folder"))
    assert ours["model.safetensors"] == theirs["model.safetensors"]
    for path, name in ((cached, NAMES[0]), (folder / file, str(folder))):
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.resolve().write_bytes(data)
        message = refused([name], tmp_path / "again")
        assert f"{path} differs from the checksum of its download" in message
    assert ".cache/huggingface/download to take it as it is" in message
    shutil.rmtree(folder / ".cache")
    if file.startswith("unet"):  # nothing says that it is another value
        convert([str(folder)], tmp_path / "again")


def test_a_gated_repository(both, tmp_path):
    both.repositories[NAMES[1]].is_gated = True
    message = refused(NAMES[1:], tmp_path / "out")
    assert "agree to their license" in message and f"{both.url}/ann/second" in message and "hf auth login" in message
    command = message[message.index("hf download") : message.index("`, copy that folder")]
    words = shlex.split(command)
    assert words[2] == NAMES[1] and words[-2:] == ["--local-dir", "second"]
    assert "unet/diffusion_pytorch_model.safetensors" in words and "text_encoder/model.safetensors" in words


def test_wrong_names(both, tmp_path):
    assert "neither a folder on this machine nor a model" in refused(["ann/none"], tmp_path / "out")
    both.add("ann/cascade", tmp_path / "nothing", **{"config.json": b"{}"})
    assert "model_index.json" in refused(["ann/cascade"], tmp_path / "out")
