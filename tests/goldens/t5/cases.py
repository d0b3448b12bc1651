"""Runs our T5 encoder on the weights, tokens and masks of the goldens."""

from pathlib import Path

import jax
import numpy as np

from imagen_jax.models.t5 import T5Encoder, _relative_position_bucket
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.parallel.sharding import load_params
from imagen_jax.text.encoder import parameter_shapes
from imagen_jax.text.t5_weights import parameter_reader, read_config

HERE = Path(__file__).parent
GOLDEN = HERE / "golden.npz"
# folder -> description
VARIANTS = {
    "encoder": "encoder of a T5 v1.1",
    "whole": "full T5 v1.1, in several files",
    "first": "T5 v1.0, with ReLU",
    "silu": "T5 with gated SiLU",
    "mt5": "mT5",
    "umt5": "UMT5, with biases in each layer",
}
# in float32; the measured maximum is 8e-6, about the error of torch relative to float64
TOLERANCE = 1e-5
# mean over tokens in bfloat16; the measured minimum of single tokens is 0.9976, and 0.9984 for torch
COSINE = 0.999


def embeddings(name, tokens, mask, dtype=np.float32):
    """Returns float32 embeddings [N, D] of unmasked tokens, from tokens int32 [B, L] and a mask bool [B, L]."""
    return _encode(name, tokens, mask, dtype)[mask]


def padded_embeddings(tokens, mask):
    """Returns float32 embeddings [B, L, D] of the first variant, with those of padding."""
    return _encode("encoder", tokens, mask, np.float32, encode_padding=True)


def _encode(name, tokens, mask, dtype, **fields):
    folder = HERE / name
    config = read_config(folder)
    shapes = parameter_shapes(config, dtype)
    read = parameter_reader(folder, T5Encoder(**config), shapes)
    params = load_params(shapes, read, make_mesh({"data": 1, "fsdp": 1}, jax.devices()[:1]))
    encoded = jax.jit(T5Encoder(**config, **fields, dtype=dtype).apply)({"params": params}, tokens, mask)
    return np.asarray(encoded, np.float32)


def error(ours, theirs):
    """Returns the largest absolute difference."""
    return np.abs(ours - theirs).max()


def cosines(ours, theirs):
    """Returns the cosine similarity [N] of embeddings [N, D]."""
    return np.sum(ours * theirs, -1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)


def buckets(offsets):
    return np.asarray(_relative_position_bucket(offsets, num_buckets=32, max_distance=128))
