"""T5 encoders (arXiv:1910.10683): v1.0, v1.1, mT5, ByT5, flan, UL2 (arXiv:2002.05202) and UMT5 (arXiv:2304.09151).

Fields have the names of Hugging Face's `T5Config`, so that a `config.json` maps onto a module one to one.

B batch, L text length, D = d_model, H = num_heads, K = d_kv.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.errors import ConfigError

LEARNED_TOKENS = "learned_tokens"  # the parameter with the rows of tokens beyond the vocabulary

# Low enough that exp underflows to 0; finite, so that a row without any token is not NaN.
_MASKED_LOGIT = -1e9

# Nonlinearities by feed_forward_proj; "gated-" multiplies by a second projection of the input.
_NONLINEARITIES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,  # T5 v1.0
    "gated-gelu": functools.partial(nn.gelu, approximate=True),  # v1.1 and most others: the tanh form, "gelu_new"
    "gated-silu": nn.silu,  # UL2, Pile-T5
}


def _relative_position_bucket(relative_position: np.ndarray, *, num_buckets: int, max_distance: int) -> np.ndarray:
    """Returns the bucket of each offset key - query, in [0, num_buckets) (arXiv:1910.10683, Section 2.1).

    The lower half of the buckets is for keys to the left, the upper half for keys to the right. Half of the buckets of
    a side hold one distance each, the others grow logarithmically up to `max_distance`; larger ones share the last.

    Args:
        relative_position: int array of any shape.
        num_buckets: buckets of both sides.
        max_distance: distance from which on all share one bucket.
    """
    offset = np.asarray(relative_position)
    distance = np.abs(offset)
    per_side = num_buckets // 2
    exact = per_side // 2
    # in float32, because published weights were trained with bucket edges rounded in float32
    ratio = np.log(np.maximum(distance, exact).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(math.log(max_distance / exact))
    coarse = exact + (ratio * np.float32(per_side - exact)).astype(np.int32)
    within = np.where(distance < exact, distance, np.minimum(coarse, per_side - 1))
    return np.where(offset > 0, per_side, 0) + within


class _RMSNorm(nn.Module):
    """Normalizes [..., D] by the root mean square, without mean or bias (arXiv:1910.07467)."""

    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x32 = x.astype(jnp.float32)  # squares in float32: T5's residual stream reaches 1e4, bf16 loses small terms
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.epsilon)
        return (x32 * scale.astype(jnp.float32)).astype(self.dtype)


class _RelativeBias(nn.Module):
    """Learned bias per head and offset bucket for attention logits: length L → [H, L, L] float32."""

    num_heads: int
    d_model: int
    num_buckets: int
    max_distance: int

    @nn.compact
    def __call__(self, length: int) -> jax.Array:
        std = self.d_model**-0.5
        table = self.param("embedding", nn.initializers.normal(std), (self.num_buckets, self.num_heads))
        position = np.arange(length)
        bucket_LL = _relative_position_bucket(
            position[None, :] - position[:, None],
            num_buckets=self.num_buckets,
            max_distance=self.max_distance,
        )
        return jnp.transpose(table.astype(jnp.float32)[bucket_LL], (2, 0, 1))


def _linear(features: int, std: float, dtype: Any, name: str) -> nn.Dense:
    """Returns a dense layer without bias, initialized from a normal distribution with a standard deviation."""
    return nn.Dense(features, use_bias=False, kernel_init=nn.initializers.normal(std), dtype=dtype, name=name)


class Attention(nn.Module):
    """Multi-head self-attention without 1/sqrt(K): T5 moves that factor into the initialization of q."""

    num_heads: int
    d_kv: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """Returns [B, L, D] from x [B, L, D] and a float32 bias broadcastable to [B, H, L, L]."""
        width = x.shape[-1]
        inner = self.num_heads * self.d_kv
        heads = (self.num_heads, self.d_kv)
        q = _linear(inner, (width * self.d_kv) ** -0.5, self.dtype, "q")(x)
        k = _linear(inner, width**-0.5, self.dtype, "k")(x)
        v = _linear(inner, width**-0.5, self.dtype, "v")(x)
        q_BLHK, k_BLHK, v_BLHK = (a.reshape(*a.shape[:2], *heads) for a in (q, k, v))
        logits = jnp.einsum("blhk,bmhk->bhlm", q_BLHK, k_BLHK, preferred_element_type=jnp.float32)
        logits = logits + bias  # softmax in float32: bf16 loses mass
        weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
        # normalized after the matmul, K numbers per row instead of L: halves the time of a forward pass on a CPU
        total = jnp.sum(weights, axis=-1, keepdims=True)
        attended_BHLK = jnp.einsum("bhlm,bmhk->bhlk", weights.astype(self.dtype), v_BLHK) / total
        attended = jnp.swapaxes(attended_BHLK.astype(self.dtype), 1, 2).reshape(*x.shape[:2], inner)
        return _linear(width, inner**-0.5, self.dtype, "o")(attended)


class FeedForward(nn.Module):
    """MLP over [..., D]: f(x W) W_o, or (f(x W_0) * (x W_1)) W_o for gated projections (arXiv:2002.05202)."""

    feed_forward_proj: str
    d_ff: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        nonlinearity = _NONLINEARITIES[self.feed_forward_proj]
        if self.feed_forward_proj.startswith("gated-"):
            hidden = nonlinearity(_linear(self.d_ff, width**-0.5, self.dtype, "wi_0")(x))
            hidden = hidden * _linear(self.d_ff, width**-0.5, self.dtype, "wi_1")(x)
        else:
            hidden = nonlinearity(_linear(self.d_ff, width**-0.5, self.dtype, "wi")(x))
        return _linear(width, self.d_ff**-0.5, self.dtype, "wo")(hidden)


def _padding_bias(mask: jax.Array) -> jax.Array:
    """Returns the logit bias that masks padding keys: bool [B, L] → float32 [B, 1, 1, L]."""
    return jnp.where(mask, 0.0, _MASKED_LOGIT)[:, None, None, :]


class T5Encoder(nn.Module):
    """A T5 encoder.

    Attributes: see Hugging Face's `T5Config`, and
        relative_bias_per_layer: whether each block has its own relative bias, as in UMT5; T5 shares that of the first.
        encode_padding: whether padding keeps its own embeddings, which attend to the tokens, as in transformers'
            `T5EncoderModel`; else they are zero. Those of tokens are the same.
        learned_tokens: number of tokens beyond the vocabulary, with rows of their own (arXiv:2208.01618); their ids
            begin at `vocab_size`.
        dtype: dtype of the compute; parameters keep the dtype they are loaded in.

    Raises:
        ConfigError: an unknown `feed_forward_proj`.
    """

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "gated-gelu"
    relative_bias_per_layer: bool = False
    encode_padding: bool = False
    learned_tokens: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns text embeddings [B, L, D] in `dtype`, zero where the mask is False, or see `encode_padding`.

        Args:
            tokens: int32 [B, L].
            mask: bool [B, L], True where there is a token.
        """
        if self.feed_forward_proj not in _NONLINEARITIES:
            raise ConfigError(
                f"feed_forward_proj {self.feed_forward_proj!r} is not supported: choose an encoder with one of "
                f"{', '.join(_NONLINEARITIES)}"
            )
        mask_bias = _padding_bias(mask)

        def norm(name: str) -> _RMSNorm:
            return _RMSNorm(epsilon=self.layer_norm_epsilon, dtype=self.dtype, name=name)

        def logit_bias(name: str) -> jax.Array:
            table = _RelativeBias(
                num_heads=self.num_heads,
                d_model=self.d_model,
                num_buckets=self.relative_attention_num_buckets,
                max_distance=self.relative_attention_max_distance,
                name=name,
            )
            return table(tokens.shape[1]) + mask_bias

        x = nn.Embed(
            self.vocab_size,
            self.d_model,
            embedding_init=nn.initializers.normal(1.0),
            dtype=jnp.float32,  # a float32 residual stream: it grows until bf16 loses what blocks add
            name="token_embedding",
        )(jnp.minimum(tokens, self.vocab_size - 1) if self.learned_tokens else tokens)
        if self.learned_tokens:
            shape = (self.learned_tokens, self.d_model)
            rows = self.param(LEARNED_TOKENS, nn.initializers.normal(1.0), shape)
            is_learned = tokens >= self.vocab_size
            learned = rows.astype(jnp.float32)[jnp.where(is_learned, tokens - self.vocab_size, 0)]
            x = jnp.where(is_learned[..., None], learned, x)
        shared = None if self.relative_bias_per_layer else logit_bias("relative_bias")
        for i in range(self.num_layers):
            bias = logit_bias(f"block_{i}_relative_bias") if shared is None else shared
            h = norm(f"block_{i}_attention_norm")(x)
            x = x + Attention(self.num_heads, self.d_kv, self.dtype, name=f"block_{i}_attention")(h, bias)
            h = norm(f"block_{i}_feed_forward_norm")(x)
            feed_forward = FeedForward(self.feed_forward_proj, self.d_ff, self.dtype, name=f"block_{i}_feed_forward")
            x = x + feed_forward(h)
        x = norm("final_norm")(x)
        return x if self.encode_padding else jnp.where(mask[..., None], x, 0)
