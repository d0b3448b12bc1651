"""Text encoders for plans: their shapes without their weights."""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.config.fields import DTYPES
from imagen_jax.config.schema import TextConfig
from imagen_jax.parallel.sharding import Index, ParamPath
from imagen_jax.text.encoder import TextEncoder, build_encoder, load_encoder
from imagen_jax.text.hub import SAFETENSORS_MIRRORS
from imagen_jax.text.tokenizer import byte_tokenizer

# d_model, d_ff, layers and heads from the config.json files of google/t5-v1_1-… and google/flan-t5-…, which agree
_SIZES = {
    "small": (512, 1024, 8, 6),
    "base": (768, 2048, 12, 12),
    "large": (1024, 2816, 24, 16),
    "xl": (2048, 5120, 24, 32),
    "xxl": (4096, 10240, 24, 64),
}
_FAMILIES = ("google/t5-v1_1-", "google/flan-t5-")
_ORIGINAL_NAMES = {copy: name for name, copy in SAFETENSORS_MIRRORS.items()}


def published_t5_fields(model: str) -> dict[str, Any] | None:
    """Returns the fields of `T5Encoder` for a T5 on the Hugging Face Hub by its name; None if it is unknown."""
    name = _ORIGINAL_NAMES.get(model, model)
    for family in _FAMILIES:
        if name.removeprefix(family) in _SIZES and name.startswith(family):
            width, hidden, layers, heads = _SIZES[name.removeprefix(family)]
            return {
                "vocab_size": 32128,
                "d_model": width,
                "d_kv": 64,
                "d_ff": hidden,
                "num_layers": layers,
                "num_heads": heads,
            }
    return None


def abstract_encoder(config: TextConfig) -> TextEncoder:
    """Returns the encoder of a config's `text`; for a published T5 without files, and with unreadable weights.

    Raises:
        ConfigError: like `load_encoder`, for any other encoder.
    """
    fields, dtype = published_t5_fields(config.model), DTYPES[config.dtype]
    if fields is None:
        return _with_blank_null_text(load_encoder(config.model, config.length, dtype, config.padding))

    def read(path: ParamPath, index: Index) -> NoReturn:
        raise ValueError(f"{'/'.join(path)} of {config.model} cannot be read: a plan has only its shape")

    # plans tokenize nothing; all T5s end a sequence with the same token
    return _with_blank_null_text(build_encoder(fields, read, byte_tokenizer(config.length, config.padding), dtype))


def _with_blank_null_text(encoder: TextEncoder) -> TextEncoder:
    """Returns an encoder with zeros in the place of a stored null text, whose values no plan depends on."""
    zeros = np.zeros((encoder.length, encoder.width), np.float32)
    return dataclasses.replace(encoder, null_text=lambda: zeros)


def cached_encoder(encoder: TextEncoder) -> TextEncoder:
    """Returns an encoder without parameters, for batches with embeddings [B, L, D] in place of tokens."""
    dtype = jax.tree.leaves(encoder.shapes)[0].dtype

    def encode(params: dict, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        # the empty caption comes as tokens; its embedding is a constant
        return tokens if tokens.ndim == 3 else jnp.zeros((*tokens.shape, encoder.width), dtype)

    return dataclasses.replace(encoder, shapes={}, encode=encode)
