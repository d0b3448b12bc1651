"""Encoders on the Hub, without a network: the cache is built by hand and the Hub's answers are mocked."""

import shlex
import shutil
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from imagen_jax.text.encoder import SHAPES_ENCODER, load_encoder
from imagen_jax.text.hub import hub_folder

NAME = "owner/small-t5"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def cached(cache):
    """An encoder in the cache, in the layout of huggingface_hub."""
    of_model = cache / "models--owner--small-t5"
    (of_model / "refs").mkdir(parents=True)
    (of_model / "refs" / "main").write_text(COMMIT)
    folder = of_model / "snapshots" / COMMIT
    shutil.copytree(SHAPES_ENCODER, folder)
    return folder


@pytest.fixture
def hub(monkeypatch, cache):
    """A mock Hub with the files that the test lists; a download creates them and records its arguments."""
    files, asked = [], []

    def model_info(name):
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])

    def snapshot_download(name, allow_patterns, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError("not there")
        asked.append((name, allow_patterns))
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return SimpleNamespace(files=files, asked=asked)


def test_cached_encoder_needs_no_network(cached):
    assert hub_folder(NAME) == cached
    ours, theirs = load_encoder(NAME, length=16).params, load_encoder("shapes", length=16).params
    np.testing.assert_array_equal(ours["final_norm"]["scale"], theirs["final_norm"]["scale"])


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer_config.json"])
def test_incomplete_cached_encoder_raises(cached, file):
    (cached / file).unlink()
    with pytest.raises(ValueError, match="nor complete in the Hugging Face cache"):
        hub_folder(NAME)


def test_offline_error_names_download_command(cache):
    with pytest.raises(ValueError) as caught:
        load_encoder("google/flan-t5-xl", length=16)
    message = str(caught.value)
    assert str(cache) in message and "offline" in message and "text.model" in message
    command = message[message.index("hf download") : message.index(" and copy the folder google/flan-t5-xl")]
    _, _, name, *patterns = shlex.split(command)
    expected = ["--include", "*.json", "--include", "spiece.model", "--include", "model*.safetensors*"]
    assert name == "google/flan-t5-xl" and patterns == [*expected, "--local-dir", "google/flan-t5-xl"]


def test_offline_error_names_mirror(cache):
    with pytest.raises(
        ValueError, match="hf download city96/t5-v1_1-xxl-encoder-bf16 .*--local-dir google/t5-v1_1-xxl .*is a mirror"
    ):
        load_encoder("google/t5-v1_1-xxl", length=16)


def test_only_safe_files_are_downloaded(hub, cache):
    hub.files += ["config.json", "spiece.model", "model-00001-of-00002.safetensors", "pytorch_model.bin", "tf_model.h5"]
    assert hub_folder(NAME) == cache
    ((name, patterns),) = hub.asked
    assert name == NAME and "spiece.model" in patterns
    assert not any(part in pattern for pattern in patterns for part in ("bin", "h5", ".py"))


def test_pickled_model_is_not_downloaded(hub):
    hub.files += ["config.json", "pytorch_model.bin", "tf_model.h5"]
    with pytest.raises(ValueError, match="no safetensors weights on the Hugging Face Hub.* && python -c '"):
        hub_folder(NAME)
    with pytest.raises(ValueError, match="set text.model to city96/t5-v1_1-xxl-encoder-bf16"):
        hub_folder("google/t5-v1_1-xxl")
    assert not hub.asked


@pytest.mark.parametrize(
    "name",
    ["t5", "/etc/t5", "a/b/c", "./t6", "own er/t5", "owner/t5;ls", "owner/$(ls)", "öwner/t5", "a--b/c", "a/b\n"],
)
def test_invalid_repo_names_raise(hub, name):
    with pytest.raises(ValueError, match='is neither "shapes", "random"'):
        load_encoder(name, length=16)
    assert not hub.asked
