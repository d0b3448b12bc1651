import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagen_jax.errors import ConfigError
from imagen_jax.text.clip import CLIP, make_encode
from imagen_jax.text.clip_tokenizer import load_clip_tokenizer
from imagen_jax.text.clip_weights import read_config, towers
from tests.goldens.clip import cases
from tests.helpers.configs import eight_devices, split_devices

pytest_plugins = ("tests.helpers.hub",)

FC1 = "text_model.encoder.layers.1.mlp.fc1.weight"
# the config.json of openai/clip-vit-large-patch14 as it was published, but for what is not read
PUBLISHED = {
    "model_type": "clip",
    "projection_dim": 768,
    "text_config": {"eos_token_id": 2, "hidden_size": 768, "num_attention_heads": 12, "projection_dim": 768},
    "text_config_dict": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
    },
    "vision_config": {"hidden_size": 1024, "num_attention_heads": 16, "patch_size": 14},
    "vision_config_dict": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
    },
}


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(cases.HERE / "quick", tmp_path / "clip")


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def reconfigure(folder, tower=None, **fields):
    config = json.loads((folder / "config.json").read_text())
    (config if tower is None else config[tower]).update(fields)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", ["quick", "exact"])
def test_tokens_match_transformers(name):
    with np.load(cases.GOLDEN) as golden:
        expected = golden[f"{name}/tokens"]
    np.testing.assert_array_equal(load_clip_tokenizer(cases.HERE / name, 77)(cases.TEXTS), expected)


@pytest.mark.parametrize(
    "config", [{"model_type": "clip"}, PUBLISHED, {"model_type": "clip", "text_config": {"eos_token_id": 2}}]
)
def test_fields_match_transformers(tmp_path, config):
    from transformers import CLIPConfig

    (tmp_path / "config.json").write_text(json.dumps(config))
    vision, text = towers(read_config(tmp_path), tmp_path)
    theirs = CLIPConfig(**{key: value for key, value in config.items() if key != "model_type"})
    for tower, other in ((vision, theirs.vision_config), (text, theirs.text_config)):
        fields = {key: value for key, value in vars(tower).items() if key in other.to_dict() and key != "dtype"}
        assert len(fields) >= 9
        assert fields == {key: getattr(other, key) for key in fields} | {"projection_dim": theirs.projection_dim}


@pytest.mark.parametrize("mesh", [eight_devices, split_devices])
def test_devices_agree(mesh):
    alone = cases.load("quick")
    shared = CLIP.from_pretrained(cases.HERE / "quick", mesh())
    images, texts = cases.images() * 4, cases.TEXTS * 2
    np.testing.assert_allclose(shared.encode_images(images, 8), alone.encode_images(images), atol=1e-6)
    np.testing.assert_allclose(shared.encode_text(texts, 3), alone.encode_text(texts), atol=1e-6)


def test_batches_of_one_size_and_equal_towers_share_a_program():
    clips, programs = [cases.load("quick"), cases.load("quick")], make_encode.cache_info().currsize
    sizes = []
    for clip in clips:
        clip.encode_text(["a", "b", "c", "d", "e", "f", "g"], batch_size=5)
        sizes.append(make_encode(clip._text, clip.mesh)._cache_size())
    assert sizes[0] == sizes[1] and make_encode.cache_info().currsize <= programs + 1


def test_no_images_and_no_texts_are_empty():
    clip = cases.load("quick")
    assert clip.encode_images([]).shape == clip.encode_text([]).shape == (0, clip.width)


def test_old_files_have_tensors_that_are_not_needed(folder):
    expected = cases.load("quick").encode_text(cases.TEXTS)
    rewrite(folder, lambda t: t.update({"text_model.embeddings.position_ids": np.arange(77)[None]}))
    np.testing.assert_allclose(CLIP.from_pretrained(folder).encode_text(cases.TEXTS), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop(FC1), f"missing {FC1}"),
        (lambda t: t.update({"text_model.extra.weight": np.zeros(2, np.float32)}), "unexpected text_model.extra"),
        (lambda t: t.update({FC1: t[FC1].T.copy()}), rf"{FC1} is \[8, 20\], expected \[20, 8\]"),
        (lambda t: t.update({FC1: t[FC1].astype(np.int32)}), f"{FC1} is stored as I32"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, change, match):
    rewrite(folder, change)
    with pytest.raises(ConfigError, match=match):
        CLIP.from_pretrained(folder)


@pytest.mark.parametrize(
    ("tower", "fields", "match"),
    [
        (None, {"model_type": "siglip"}, 'model_type "siglip"'),
        ("text_config", {"hidden_act": "swish"}, "config.json: hidden_act 'swish'"),
        ("text_config", {"num_hidden_layers": 0}, "num_hidden_layers 0"),
        ("vision_config", {"patch_size": [8, 8]}, "patch_size"),
        ("vision_config", {"patch_size": 64}, "patch_size"),
        ("text_config", {"vocab_size": 100}, "521 tokens"),
        ("vision_config", {"image_size": 40}, "preprocessor_config.json"),
        (None, {"text_config": 3}, "text_config 3"),
    ],
)
def test_configs_that_cannot_work_are_refused(folder, tower, fields, match):
    reconfigure(folder, tower, **fields)
    with pytest.raises(ConfigError, match=match):
        CLIP.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_files_are_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=name):
        CLIP.from_pretrained(folder)


def test_damaged_tokenizers_are_refused(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="no tokenizer could be read"):
        CLIP.from_pretrained(folder)


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="pickled weights"):
        CLIP.from_pretrained(folder)


def test_an_image_tower_alone_encodes_no_texts():
    with pytest.raises(ConfigError, match="image tower alone"):
        cases.load("vision").encode_text(["a ring"])


def test_wrong_values_are_refused():
    clip = cases.load("quick")
    for call in (
        lambda: clip.encode_text("a ring"),
        lambda: clip.encode_text([3]),
        lambda: clip.encode_images(["a.png"]),
        lambda: clip.encode_images(cases.images(), 0),
        lambda: CLIP.from_pretrained("no-such-folder"),
    ):
        with pytest.raises(ConfigError):
            call()


def test_loads_from_the_hub(hub):
    hub.add("owner/clip", cases.HERE / "quick", **{"pytorch_model.bin": b"pickled", "run.py": b"code"})
    ours = CLIP.from_pretrained("owner/clip").encode_text(cases.TEXTS)
    np.testing.assert_allclose(ours, cases.load("quick").encode_text(cases.TEXTS), atol=1e-6)
    assert not {"pytorch_model.bin", "run.py"} & hub.downloaded()


def test_pickled_weights_on_the_hub_are_not_downloaded(hub):
    hub.add("owner/clip", cases.HERE / "quick", **{"pytorch_model.bin": b"pickled", "model.safetensors": None})
    with pytest.raises(ConfigError, match=r"owner/clip has only pickled weights \(pytorch_model.bin\)"):
        CLIP.from_pretrained("owner/clip")
    assert "pytorch_model.bin" not in hub.downloaded()


def test_missing_repositories_are_named(hub):
    with pytest.raises(ConfigError, match="owner/other"):
        CLIP.from_pretrained("owner/other")
