"""A text encoder to which no name leads others is inside of a published cascade, and is that which is used."""

import dataclasses
import shutil

import numpy as np
import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.publishing.text_encoders import plan_encoders
from imagen_jax.stages.stage import build
from imagen_jax.text.encoder import random_encoder
from imagen_jax.text.t5_weights import save_folder
from tests.helpers.configs import base_config, contents, one_device
from tests.helpers.encoders import BYTE_T5

pytest_plugins = ("tests.helpers.fixtures",)
PROMPTS = ["a ring"]
FILES = {"config.json", "model.safetensors", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    """A T5 as wide as the encoder that the stages were trained with, but of other weights; and a file of others."""
    folder = tmp_path_factory.mktemp("encoders") / "t5"
    folder.mkdir()
    save_folder(folder, BYTE_T5, random_encoder(seed=7, length=2).params)
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    return folder


@pytest.fixture(scope="module")
def pipeline(base_folder, encoder_folder):
    """A base stage, as if it had been trained with the encoder of the folder."""
    (trained,) = ImagenPipeline.from_pretrained(base_folder, one_device(), text_encoder=False).stages
    config = trained.stage.config.with_changes({"text.model": str(encoder_folder), "text.fingerprint": ""})
    return ImagenPipeline([dataclasses.replace(trained, stage=build(config, BYTE_T5["d_model"]))], one_device())


@pytest.fixture(scope="module")
def cascade(pipeline, tmp_path_factory):
    """The stage, published, and moved to where others have it."""
    folder = tmp_path_factory.mktemp("published") / "cascade"
    pipeline.save_pretrained(folder, prompts=PROMPTS)
    return folder.rename(tmp_path_factory.mktemp("elsewhere") / "cascade")


def test_published_encoder_is_that_of_the_stage(pipeline, base_folder, cascade):
    again = ImagenPipeline.from_pretrained(cascade, one_device())
    assert again.stages[0].stage.config.text.model == str(cascade / "text_encoder")
    before, after = (pipe.encode_prompt(PROMPTS) for pipe in (pipeline, again))
    np.testing.assert_array_equal(after.embeddings, before.embeddings)
    trained_with = ImagenPipeline.from_pretrained(base_folder, one_device()).encode_prompt(PROMPTS)
    assert not np.array_equal(after.embeddings, trained_with.embeddings)
    np.testing.assert_array_equal(again(PROMPTS, seed=3).images, pipeline(PROMPTS, seed=3).images)


def test_files_of_the_encoder_alone_are_inside(cascade, encoder_folder):
    files = contents(cascade)
    inside = {name for name in files if name.startswith("text_encoder/")}
    assert inside == {f"text_encoder/{name}" for name in FILES}
    assert str(encoder_folder.parent).encode() not in b"".join(data for data in files.values() if data)
    assert "Text encoder `t5`, `text_encoder/`" in files["README.md"].decode()


def test_a_published_encoder_is_published_again(cascade, tmp_path):
    ImagenPipeline.from_pretrained(cascade, one_device()).save_pretrained(tmp_path / "again", prompts=PROMPTS)
    before, after = contents(cascade), contents(tmp_path / "again")
    assert {name for name in before if before[name] != after.get(name)} <= {"README.md", "SHA256SUMS"} | {
        "model_index.json",
        "stage_0/config.json",
    }


@pytest.mark.parametrize("file", sorted(FILES))
def test_a_damaged_encoder_is_refused_by_name(cascade, tmp_path, file):
    damaged = shutil.copytree(cascade, tmp_path / "damaged")
    data = bytearray((damaged / "text_encoder" / file).read_bytes())
    data[-1] ^= 1
    (damaged / "text_encoder" / file).write_bytes(data)
    with pytest.raises(ConfigError, match=f"text_encoder/{file}"):
        ImagenPipeline.from_pretrained(damaged, one_device())


def test_a_folder_is_no_name_for_others(pipeline, tmp_path):
    with pytest.raises(ConfigError, match="inside, with --text_encoder"):
        pipeline.save_pretrained(tmp_path / "out", prompts=PROMPTS, text_encoder=False)
    assert not list(tmp_path.iterdir())


def test_stages_share_an_encoder(encoder_folder):
    texts = [
        base_config(**{"text.model": str(encoder_folder), "text.fingerprint": digit * 32}).text for digit in "abab"
    ]
    folders = [plan.entry.folder for plan in plan_encoders(texts, [None] * 4, inside=None)]
    assert folders == ["text_encoder", "text_encoder_1", "text_encoder", "text_encoder_1"]


def test_an_encoder_is_known_by_fingerprint_at_least(encoder_folder):
    text = base_config(**{"text.model": str(encoder_folder)}).text
    with pytest.raises(ConfigError, match="fingerprint is empty"):
        plan_encoders([text], [None], inside=None)
