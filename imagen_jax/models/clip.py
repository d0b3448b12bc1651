"""CLIP's towers (arXiv:2103.00020): a vision transformer over patches, a causal transformer over tokens.

Fields have the names of Hugging Face's `CLIPVisionConfig` and `CLIPTextConfig`, so that a `config.json` maps onto a
module one to one. Each tower ends with its projection into the space that images and texts share.

B batch, L positions, D = hidden_size, H = num_attention_heads, K = D / H, P = projection_dim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.errors import ConfigError

# Low enough that exp underflows to 0; finite, so that no difference of logits is NaN.
_MASKED_LOGIT = -1e9
# `eos_token_id` in files that were written before transformers knew that of CLIP's tokenizer
_LEGACY_EOS = 2


def _quick_gelu(x: jax.Array) -> jax.Array:
    """Returns x · sigmoid(1.702 x) (arXiv:1606.08415, Section 2), as the original CLIP has it."""
    return x * nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": _quick_gelu,
    "gelu": functools.partial(nn.gelu, approximate=False),
}


def _norm(epsilon: float, name: str) -> nn.LayerNorm:
    """Returns a layer norm in float32, whose variance is that of deviations."""
    return nn.LayerNorm(epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)


class _Attention(nn.Module):
    """Multi-head self-attention."""

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array | None) -> jax.Array:
        """Returns [B, L, D] from x [B, L, D] and a float32 bias broadcastable to [B, H, L, L], or None."""
        width = x.shape[-1]
        heads = (*x.shape[:2], self.num_heads, width // self.num_heads)
        q_BLHK, k_BLHK, v_BLHK = (
            nn.Dense(width, dtype=self.dtype, name=f"{matrix}_proj")(x).reshape(heads) for matrix in "qkv"
        )
        q_BLHK = q_BLHK * heads[-1] ** -0.5
        logits = jnp.einsum("blhk,bmhk->bhlm", q_BLHK, k_BLHK, preferred_element_type=jnp.float32)
        # softmax in float32: bf16 loses mass
        weights = nn.softmax(logits if bias is None else logits + bias)
        attended = jnp.einsum("bhlm,bmhk->blhk", weights.astype(self.dtype), v_BLHK).reshape(x.shape)
        return nn.Dense(width, dtype=self.dtype, name="out_proj")(attended)


class _FeedForward(nn.Module):
    """MLP over [..., D]."""

    width: int
    activation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = ACTIVATIONS[self.activation](nn.Dense(self.width, dtype=self.dtype, name="fc1")(x))
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(hidden)


class _Layer(nn.Module):
    """A transformer layer with norms before attention and MLP; the residual stream is float32 [B, L, D]."""

    num_heads: int
    intermediate_size: int
    activation: str
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array | None) -> jax.Array:
        h = _norm(self.epsilon, "layer_norm1")(x)
        x = x + _Attention(self.num_heads, self.dtype, name="self_attn")(h, bias)
        h = _norm(self.epsilon, "layer_norm2")(x)
        return x + _FeedForward(self.intermediate_size, self.activation, self.dtype, name="mlp")(h)


class _Tower(nn.Module):
    """What both towers have: their fields, their layers and their projection.

    Attributes: see Hugging Face's configs, and
        dtype: dtype of the compute; parameters keep the dtype they are loaded in.

    Raises:
        ConfigError: an unknown `hidden_act`, or heads that do not divide the width.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    projection_dim: int
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_act not in ACTIVATIONS:
            raise ConfigError(
                f"hidden_act {self.hidden_act!r} is not supported: choose a CLIP with one of {', '.join(ACTIVATIONS)}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {self.num_attention_heads}: "
                "correct the config.json"
            )

    def _layers(self, x: jax.Array, bias: jax.Array | None) -> jax.Array:
        """Returns the residual stream [B, L, D] after all layers."""
        for index in range(self.num_hidden_layers):
            x = _Layer(
                self.num_attention_heads,
                self.intermediate_size,
                self.hidden_act,
                self.layer_norm_eps,
                self.dtype,
                name=f"layers_{index}",
            )(x, bias)
        return x

    def _project(self, pooled: jax.Array) -> jax.Array:
        """Returns embeddings float32 [B, P] of pooled features [B, D]."""
        return nn.Dense(self.projection_dim, use_bias=False, dtype=self.dtype, name="projection")(pooled).astype(
            jnp.float32
        )

    def _position_embedding(self, count: int) -> jax.Array:
        """Returns the learned embedding [count, D] of each position."""
        return self.param("position_embedding", nn.initializers.normal(0.02), (count, self.hidden_size))


class CLIPVisionTower(_Tower):
    """The image tower. Pixels to the right and below that are not a full patch are not seen, as in transformers."""

    image_size: int = 224
    patch_size: int = 32
    num_channels: int = 3

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns embeddings float32 [B, P], not normalized, of normalized images [B, S, S, C], S = image_size."""
        patches = nn.Conv(
            self.hidden_size,
            (self.patch_size, self.patch_size),
            strides=(self.patch_size, self.patch_size),
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
            name="patch_embedding",
        )(images)
        x = patches.reshape(len(images), -1, self.hidden_size).astype(jnp.float32)
        first = self.param("class_embedding", nn.initializers.normal(self.hidden_size**-0.5), (self.hidden_size,))
        x = jnp.concatenate([jnp.broadcast_to(first.astype(x.dtype), (len(x), 1, self.hidden_size)), x], axis=1)
        x = x + self._position_embedding(x.shape[1])
        x = self._layers(_norm(self.layer_norm_eps, "pre_norm")(x), None)
        return self._project(_norm(self.layer_norm_eps, "post_norm")(x[:, 0]))


class CLIPTextTower(_Tower):
    """The text tower. Tokens see those before them alone, so that padding after the end of text has no effect."""

    vocab_size: int = 49408
    max_position_embeddings: int = 77
    eos_token_id: int = 49407

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns embeddings float32 [B, P], not normalized, of tokens int32 [B, L], L ≤ max_position_embeddings."""
        length = tokens.shape[1]
        x = nn.Embed(
            self.vocab_size,
            self.hidden_size,
            embedding_init=nn.initializers.normal(0.02),
            dtype=jnp.float32,
            name="token_embedding",
        )(tokens)
        x = x + self._position_embedding(self.max_position_embeddings)[:length]
        causal = jnp.where(jnp.tril(jnp.ones((length, length), bool)), 0.0, _MASKED_LOGIT)
        x = self._layers(x, causal)
        ends = end_positions(tokens, self.eos_token_id)
        pooled = jnp.take_along_axis(x, ends[:, None, None], axis=1)[:, 0]
        return self._project(_norm(self.layer_norm_eps, "final_norm")(pooled))


def end_positions(tokens: jax.Array, eos_token_id: int) -> jax.Array:
    """Returns the position [B] in tokens [B, L] whose features are those of the text, as transformers chooses it.

    It is the first end of text. Where the config has 2, as files from before transformers 4.31 do, it is the first of
    the largest token: in CLIP's own vocabulary, the end of text again.
    """
    is_end = tokens if eos_token_id == _LEGACY_EOS else tokens == eos_token_id
    return jnp.argmax(is_end, axis=1)
