"""What tells one text encoder from another: a hash of its weights, its config and its tokenizer.

Weights count as bfloat16 has them, tensor by tensor: copies of an encoder in other types, or in more or fewer files,
are the same encoder. Its embeddings are kept in bfloat16 or less, which says no more of them.
"""

import hashlib
import json

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from imagen_jax.models.t5 import T5Encoder
from imagen_jax.parallel.sharding import ReadPart
from imagen_jax.text.t5_weights import CONFIG_FIELDS
from imagen_jax.text.tokenizer import Tokenizer

DIGITS = 32  # hexadecimal: 128 bits


def encoder_fingerprint(encoder: T5Encoder, shapes: dict, read: ReadPart, tokenizer: Tokenizer) -> str:
    """The fingerprint of an encoder; reads all of its weights, one tensor at a time.

    shapes: its parameters as abstract arrays, a plain nested dict
    read: gives any part of a parameter
    """
    fields = {name: getattr(encoder, name) for name in (*CONFIG_FIELDS, "relative_bias_per_layer")}
    whole = hashlib.sha256(json.dumps([fields, tokenizer.fingerprint], sort_keys=True).encode())
    for path, leaf in sorted(traverse_util.flatten_dict(shapes).items()):
        array = np.asarray(read(path, tuple(slice(0, size) for size in leaf.shape)), jnp.bfloat16, order="C")
        whole.update(f"{'/'.join(path)} {array.shape}".encode())
        whole.update(array.view(np.uint16).data)
    return whole.hexdigest()[:DIGITS]
