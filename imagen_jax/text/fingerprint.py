"""Identity of a text encoder: a hash of its weights, its config, its tokenizer, and a null text stored beside it.

Weights are hashed as bfloat16, tensor by tensor: copies of an encoder in other dtypes, or in more or fewer files, are
the same encoder. Embeddings are stored in bfloat16 or less, which would not show a difference.
"""

import hashlib
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from imagen_jax.models.t5 import T5Encoder
from imagen_jax.parallel.sharding import ReadSliceFn
from imagen_jax.text.t5_weights import CONFIG_FIELDS
from imagen_jax.text.tokenizer import Tokenizer

_HEX_DIGITS = 32  # 128 bits


def encoder_fingerprint(
    encoder: T5Encoder, shapes: dict, read: ReadSliceFn, tokenizer: Tokenizer, null_text: Path | None = None
) -> str:
    """Computes the fingerprint of an encoder. Reads all of its weights, one tensor at a time.

    Args:
        encoder: the module.
        shapes: its parameters as abstract arrays, a plain nested dict.
        read: reads any part of a parameter.
        tokenizer: its tokenizer.
        null_text: the file of its null text; None without one.

    Returns:
        32 hexadecimal digits.
    """
    fields = {name: getattr(encoder, name) for name in (*CONFIG_FIELDS, "relative_bias_per_layer")}
    digest = hashlib.sha256(json.dumps([fields, tokenizer.fingerprint], sort_keys=True).encode())
    for path, leaf in sorted(traverse_util.flatten_dict(shapes).items()):
        array = np.asarray(read(path, tuple(slice(0, size) for size in leaf.shape)), jnp.bfloat16, order="C")
        digest.update(f"{'/'.join(path)} {array.shape}".encode())
        digest.update(array.view(np.uint16).data)
    if null_text is not None:
        digest.update(null_text.read_bytes())
    return digest.hexdigest()[:_HEX_DIGITS]
