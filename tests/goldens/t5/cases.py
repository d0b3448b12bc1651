"""Our T5 encoder on the goldens' weights, tokens and masks."""

from pathlib import Path

import jax
import numpy as np

from imagen_jax.models.t5 import T5Encoder, relative_position_bucket
from imagen_jax.parallel.sharding import load_parameters, make_mesh
from imagen_jax.text.encoder import parameter_shapes
from imagen_jax.text.t5_weights import parameter_reader, read_config

HERE = Path(__file__).parent
GOLDEN = HERE / "golden.npz"
# folder -> what lies in it
VARIANTS = {
    "encoder": "encoder of a T5 v1.1",
    "whole": "whole T5 v1.1, in several files",
    "first": "first T5, of ReLU",
    "silu": "T5 gated by SiLU",
    "mt5": "mT5",
    "umt5": "UMT5, biases in each layer",
}
# of float32; 8e-6 has been seen: torch itself is about as far from float64
TOLERANCE = 1e-5
# of embeddings in bfloat16, the mean of all tokens; of single ones 0.9976 has been seen, and from torch 0.9984
COSINE = 0.999


def embeddings(name, tokens, mask, dtype=np.float32):
    """Of the tokens that the mask shows, [N, D] float32, for tokens int32 [B, L] and a mask bool [B, L]."""
    folder = HERE / name
    config = read_config(folder)
    shapes = parameter_shapes(config, dtype)
    read = parameter_reader(folder, T5Encoder(**config), shapes)
    params = load_parameters(shapes, read, make_mesh({"data": 1, "fsdp": 1}, jax.devices()[:1]))
    encoded = jax.jit(T5Encoder(**config, dtype=dtype).apply)({"params": params}, tokens, mask)
    return np.asarray(encoded, np.float32)[mask]


def error(ours, theirs):
    """The largest absolute difference."""
    return np.abs(ours - theirs).max()


def cosines(ours, theirs):
    """Of each token's embeddings [N, D], [N]."""
    return np.sum(ours * theirs, -1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)


def buckets(offsets):
    return np.asarray(relative_position_bucket(offsets, num_buckets=32, max_distance=128))
