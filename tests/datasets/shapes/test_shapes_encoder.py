"""The encoder that comes with the package, and the command that made it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imagen_jax.config.load import load_config
from imagen_jax.config.schema import PretrainTextConfig
from imagen_jax.datasets.pretrain_encoder import _make_train_step
from imagen_jax.errors import ConfigError
from imagen_jax.text.encoder import SHAPES_ENCODER, load_encoder
from imagen_jax.text.t5_weights import read_config

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def embed():
    encoder = load_encoder("shapes", length=96)

    def embed(*captions):
        embeddings, mask = encoder(captions)
        return [np.asarray(row)[np.asarray(used)] for row, used in zip(embeddings, mask, strict=True)]

    return embed


def test_encoder_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in SHAPES_ENCODER.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer_config.json"} <= files.keys()
    assert sum(files.values()) < 1_100_000
    assert read_config(SHAPES_ENCODER)["vocab_size"] == 384


def test_attributes_are_bound_to_objects(embed):
    one, other = embed("a red circle and a blue square", "a blue circle and a red square")
    assert cosine(one[len("a red circle") - 1], other[len("a blue circle") - 1]) < 0.9


def test_embeddings_depend_on_scene_not_wording(embed):
    wordings = (
        "a red circle left of a blue square",
        "a blue square to the right of a red circle",
        "a red circle right of a blue square",
        "a blue circle left of a red square",
    )
    original, mirrored, *others = (
        embedding[wording.index("circle")] for wording, embedding in zip(wordings, embed(*wordings), strict=True)
    )
    same = cosine(original, mirrored)
    assert same > 0.95
    assert all(cosine(original, other) < same - 0.05 for other in others)


def test_probe_accuracies():
    figures = json.loads((SHAPES_ENCODER / "probe.json").read_text())
    assert min(figures["pretrained"].values()) > 0.95 > max(figures["untrained"].values())


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def pretrain(out, *overrides):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "imagen_jax",
            "pretrain_text",
            "--config=configs/pretrain_text.py:tiny",
            f"--out={out}",
            *overrides,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_pretrain_command(tmp_path):
    done = pretrain(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "role" in done.stdout
    embeddings, _ = load_encoder(str(tmp_path), length=16)(["a red circle"])
    assert embeddings.shape == (1, 16, 48)


def test_warmup_without_decay_raises():
    config = load_config("configs/pretrain_text.py:tiny", {"warmup_steps": 2, "steps": 2}, schema=PretrainTextConfig)
    with pytest.raises(ConfigError, match="warmup_steps"):
        _make_train_step(config)


def test_narrow_encoder_raises(tmp_path):
    done = pretrain(tmp_path / "out", "--config.encoder.d_model=41")
    assert done.returncode == 2
    assert "d_model 41" in done.stderr and "42 answers" in done.stderr
    assert not (tmp_path / "out").exists()
