"""Cascades on the Hub, from a server of its interface on this machine: what is downloaded, pushed and refused."""

import json
import os
import pathlib
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants

from imagen_jax.errors import ConfigError, TrainingError
from imagen_jax.io.hub import HubName, parse_name
from imagen_jax.pipelines.find_stages import CASCADES, find_stages
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.stages.published import INDEX
from tests.helpers.configs import contents, one_device

pytest_plugins = ("tests.helpers.fixtures", "tests.helpers.hub")
# uploads by LFS, of the Hub's library with newer versions of its HTTP client
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
NAME = "ann/tiny"
SHIPPED = CASCADES / "shapes"
PROMPTS = ["a ring"]


@pytest.fixture
def token(monkeypatch):
    """Somebody who is logged in."""
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")


@pytest.mark.parametrize(
    "text, name",
    [
        ("ann/tiny", HubName("ann/tiny")),
        ("ann/tiny@v1", HubName("ann/tiny", "v1")),
        ("ann/tiny@refs/pr/1", HubName("ann/tiny", "refs/pr/1")),
        *(
            (text, None)
            for text in ("tiny", "a/b/c", "../tiny", "/a/b", "a/..", "a /b", "a/b\n", "a/b@", "ä/b", "a--b/c")
        ),
    ],
)
def test_names(text, name):
    assert parse_name(text) == name


def refused(name):
    with pytest.raises(ConfigError) as error:
        find_stages(name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    return str(error.value)


def test_only_what_is_needed_is_downloaded(hub):
    hub.add(NAME, SHIPPED, **{"stage_0/extra.bin": b"pickled", "big.ckpt": b"pickled"})
    find_stages(NAME, weights=False)
    assert hub.downloaded() == {INDEX, "SHA256SUMS", "stage_0/config.json", "stage_1/config.json"}
    find_stages(f"{NAME}/stage_1")
    names = {str(path.relative_to(SHIPPED)) for path in SHIPPED.rglob("*") if path.is_file()}
    expected = {name for name in names if name.startswith("stage_1/")}
    assert hub.downloaded() == expected | {INDEX, "SHA256SUMS", "stage_0/config.json"}
    find_stages(NAME)
    assert hub.downloaded() == names - {"README.md", "samples.png"}


def test_images_are_equal_to_the_bit(hub, published_folder):
    hub.add(NAME, published_folder)
    images = [ImagenPipeline.from_pretrained(name, one_device())(PROMPTS).images for name in (published_folder, NAME)]
    np.testing.assert_array_equal(*images)


def test_revisions(hub):
    first = hub.add(NAME, SHIPPED)
    hub.repositories[NAME].refs["v1"] = first
    hub.add(NAME, SHIPPED, **{INDEX: b"{}"})
    assert len(find_stages(f"{NAME}@v1")) == len(find_stages(f"{NAME}@{first}")) == 2
    assert INDEX in refused(NAME)
    assert "no branch, tag or commit 'v2'" in refused(f"{NAME}@v2")


def test_the_cache_serves_without_a_network(hub, monkeypatch):
    hub.add(NAME, SHIPPED)
    stages = find_stages(NAME)
    hub.repositories.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_stages(NAME) == stages
    assert "$HF_HUB_OFFLINE is set" in refused("ann/other")


def test_damaged_downloads_are_named(hub):
    path = next((SHIPPED / "stage_0").glob("*.safetensors"))
    name, data = f"stage_0/{path.name}", bytearray(path.read_bytes())
    data[-1] ^= 1
    hub.add(NAME, SHIPPED, **{name: bytes(data)})
    with pytest.raises(ConfigError, match=name):
        ImagenPipeline.from_pretrained(NAME)
    hub.add(NAME, SHIPPED, **{name: None})
    assert name in refused(NAME)


def test_checksums_lead_to_no_other_files(hub):
    sums = (SHIPPED / "SHA256SUMS").read_bytes() + b"0" * 64 + b"  stage_0/../../secret\n"
    hub.add(NAME, SHIPPED, SHA256SUMS=sums, secret=b"")
    assert "secret" in refused(NAME)
    assert "secret" not in hub.downloaded()


def test_wrong_names_and_models_of_others(hub, tmp_path):
    assert "neither a folder on this machine nor a model on the Hugging Face Hub" in refused("ann/none")
    hub.add("ann/torch", tmp_path / "none", **{"pytorch_model.bin": b"", "config.json": b"{}"})
    message = refused("ann/torch")
    assert INDEX in message and "pytorch_model.bin" in message and "run code" in message
    hub.add("ann/diffusers", tmp_path / "none", **{INDEX: b'{"_class_name": "StableDiffusionPipeline"}'})
    assert "imagen publish" in refused("ann/diffusers")


def test_a_hub_that_does_not_answer(hub, monkeypatch):
    hub.shutdown()
    hub.server_close()
    assert "cannot be reached" in refused(NAME) or "cannot be read" in refused(NAME)


def test_push(hub, token, published_folder, tmp_path):
    pipeline = ImagenPipeline.from_pretrained(published_folder, one_device())
    pipeline.save_pretrained(tmp_path / "out", prompts=PROMPTS, push=NAME)
    assert len(hub.repositories[NAME].commits) == 2  # that which began the repository, and one
    _, files = hub.repositories[NAME].at("main")
    assert {k: v for k, v in files.items() if k != ".gitattributes"} == {
        name: data for name, data in contents(tmp_path / "out").items() if data is not False
    }
    assert f'from_pretrained("{NAME}")' in files["README.md"].decode()
    np.testing.assert_array_equal(
        ImagenPipeline.from_pretrained(NAME, one_device())(PROMPTS).images, pipeline(PROMPTS).images
    )
    hub.add(NAME, tmp_path / "out", **{"stage_2/config.json": b"{}", "NOTES.md": b"of others"})
    with pytest.raises(ConfigError, match="--overwrite"):
        pipeline.save_pretrained(tmp_path / "again", prompts=PROMPTS, push=NAME)
    with pytest.raises(ConfigError, match="public model"):
        pipeline.save_pretrained(tmp_path / "again", prompts=PROMPTS, push=NAME, private=True, overwrite=True)
    assert not (tmp_path / "again").exists()
    pipeline.save_pretrained(tmp_path / "again", prompts=PROMPTS, push=NAME, overwrite=True)
    _, files = hub.repositories[NAME].at("main")
    assert "NOTES.md" in files and "stage_2/config.json" not in files


def test_private_push(hub, token, published_folder, tmp_path):
    pipeline = ImagenPipeline.from_pretrained(published_folder, one_device())
    pipeline.save_pretrained(tmp_path / "out", prompts=PROMPTS, push=NAME, private=True)
    assert hub.repositories[NAME].private


def test_a_refused_push_leaves_the_folder(hub, token, published_folder, tmp_path):
    hub.read_only = True
    pipeline = ImagenPipeline.from_pretrained(published_folder, one_device())
    with pytest.raises(TrainingError, match="complete.*hf upload"):
        pipeline.save_pretrained(tmp_path / "out", prompts=PROMPTS, push=NAME)
    assert len(find_stages(tmp_path / "out")) == 2


def test_push_needs_a_token(hub, published_folder, tmp_path):
    pipeline = ImagenPipeline.from_pretrained(published_folder, one_device())
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        pipeline.save_pretrained(tmp_path / "out", prompts=PROMPTS, push=NAME)
    assert not (tmp_path / "out").exists()


def test_the_endpoint_is_that_of_the_environment(hub, tmp_path):
    """The one test in a process of its own: the library reads these variables when it is imported."""
    hub.add(NAME, SHIPPED)
    lines = f"from imagen_jax.pipelines.find_stages import find_stages; print(*find_stages({NAME!r}), sep='\\n')"
    variables = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    output = subprocess.check_output([sys.executable, "-c", lines], env=variables, text=True)
    stages = [pathlib.Path(line) for line in output.splitlines()]
    assert [stage.name for stage in stages] == ["stage_0", "stage_1"]
    assert all(stage.is_relative_to(tmp_path / "home") for stage in stages)
    assert json.loads((stages[0] / "config.json").read_text())["image_size"] == 32
