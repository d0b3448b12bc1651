"""The encoder that comes with the package, and the command that made it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imagen_jax.text.encoder import SHAPES_ENCODER, load_encoder
from imagen_jax.text.huggingface import read_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def embed():
    encoder = load_encoder("shapes", length=96)

    def embed(*captions):
        embeddings, mask = encoder(captions)
        return [np.asarray(row)[np.asarray(used)] for row, used in zip(embeddings, mask, strict=True)]

    return embed


def test_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in SHAPES_ENCODER.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer_config.json"} <= files.keys()
    assert sum(files.values()) < 1_100_000
    assert read_config(SHAPES_ENCODER)["vocab_size"] == 384


def test_tells_which_thing_is_red(embed):
    one, other = embed("red circle, blue square", "blue circle, red square")
    assert cosine(one[len("red circle") - 1], other[len("blue circle") - 1]) < 0.95
    assert cosine(one.mean(0), other.mean(0)) < 0.95  # 0.9998 with random weights


def test_another_wording_is_nearer_than_another_scene(embed):
    said, mirrored, swapped = embed(
        "a red circle left of a blue square",
        "a blue square to the right of a red circle",
        "a blue circle left of a red square",
    )
    same = cosine(said.mean(0), mirrored.mean(0))
    assert same > 0.9 and same > cosine(said.mean(0), swapped.mean(0)) + 0.1


def test_is_what_its_probes_were_measured_on():
    figures = json.loads((SHAPES_ENCODER / "probe.json").read_text())
    assert min(figures["pretrained"].values()) > 0.95 > max(figures["untrained"].values())


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_command_writes_a_folder_that_loads(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "imagen_jax.pretrain_text",
            "--config=configs/pretrain_text.py:tiny",
            f"--out={tmp_path}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "first colour" in done.stdout
    embeddings, _ = load_encoder(str(tmp_path), length=16)(["a red circle"])
    assert embeddings.shape == (1, 16, 16)
