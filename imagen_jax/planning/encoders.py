"""Text encoders as plans need them: their sizes, and not their weights."""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from imagen_jax.config.schema import DTYPES, TextConfig
from imagen_jax.parallel.sharding import Index, ParameterPath
from imagen_jax.text.encoder import TextEncoder, build_encoder, load_encoder
from imagen_jax.text.hub import SAFETENSORS_MIRRORS
from imagen_jax.text.tokenizer import byte_tokenizer

# d_model, d_ff, layers and heads, of the config.json files of google/t5-v1_1-… and google/flan-t5-…, which agree
SIZES = {
    "small": (512, 1024, 8, 6),
    "base": (768, 2048, 12, 12),
    "large": (1024, 2816, 24, 16),
    "xl": (2048, 5120, 24, 32),
    "xxl": (4096, 10240, 24, 64),
}
FAMILIES = ("google/t5-v1_1-", "google/flan-t5-")
ORIGINALS = {copy: name for name, copy in SAFETENSORS_MIRRORS.items()}


def published(model: str) -> dict[str, Any] | None:
    """The fields of the ``T5Encoder`` that has a name on the Hugging Face Hub; None of one that is not known here."""
    name = ORIGINALS.get(model, model)
    for family in FAMILIES:
        if name.removeprefix(family) in SIZES and name.startswith(family):
            width, hidden, layers, heads = SIZES[name.removeprefix(family)]
            return {
                "vocab_size": 32128,
                "d_model": width,
                "d_kv": 64,
                "d_ff": hidden,
                "num_layers": layers,
                "num_heads": heads,
            }
    return None


def planned_encoder(config: TextConfig) -> TextEncoder:
    """The encoder that a config's ``text`` names; of a published one no file is needed, and nothing can be read.

    Raises UsageError as ``load_encoder`` for any other.
    """
    fields, dtype = published(config.model), DTYPES[config.dtype]
    if fields is None:
        return load_encoder(config.model, config.length, dtype)

    def read(path: ParameterPath, index: Index) -> NoReturn:
        raise ValueError(f"{'/'.join(path)} of {config.model} cannot be read: a plan has its shape alone")

    # nothing is tokenized; all T5s end a sequence with the same token
    return build_encoder(fields, read, byte_tokenizer(config.length), dtype)


def from_cache(encoder: TextEncoder) -> TextEncoder:
    """An encoder whose embeddings come with the batch, [B, L, D] in the place of tokens: it has no parameters."""
    dtype = jax.tree.leaves(encoder.shapes)[0].dtype

    def encode(params: dict, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        # of the empty caption there are tokens, and its embedding is a constant
        return tokens if tokens.ndim == 3 else jnp.zeros((*tokens.shape, encoder.width), dtype)

    return dataclasses.replace(encoder, shapes={}, encode=encode)
