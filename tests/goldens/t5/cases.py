"""Our T5 encoder on the goldens' weights, tokens and masks."""

from pathlib import Path

import jax
import numpy as np

from imagen_jax.models.t5 import T5Encoder, relative_position_bucket
from imagen_jax.text.huggingface import load_params, read_config

HERE = Path(__file__).parent
GOLDEN = HERE / "golden.npz"
# a T5EncoderModel, and a whole T5 in several files
FOLDERS = {"encoder": HERE / "encoder", "whole": HERE / "sharded"}
# of float32; 8e-6 has been seen: torch itself is about as far from float64
TOLERANCE = 1e-5


def embeddings(name, tokens, mask):
    """[B, L, D] of tokens int32 [B, L] and a mask bool [B, L]."""
    config = read_config(FOLDERS[name])
    module = T5Encoder(**config)
    shapes = jax.eval_shape(module.init, jax.random.key(0), tokens, mask)["params"]
    params = load_params(FOLDERS[name], shapes, config["num_layers"], np.float32)
    return np.asarray(jax.jit(module.apply)({"params": params}, tokens, mask))


def buckets(offsets):
    return np.asarray(relative_position_bucket(offsets, num_buckets=32, max_distance=128))
