"""The T5 encoder (arXiv:1910.10683) and its kin: v1.1, mT5, ByT5, flan, UL2 (arXiv:2002.05202), UMT5 (2304.09151).

Keyword fields carry the names of Hugging Face's `T5Config`, so a `config.json` maps onto a module one to one.

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

# Low enough that exp underflows to exactly 0, finite so that a row without any token stays free of NaN.
MASKED_LOGIT = -1e9

# feed_forward_proj -> its nonlinearity; with "gated-" a second product of the input multiplies it
NONLINEARITIES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,  # the first T5
    "gated-gelu": functools.partial(nn.gelu, approximate=True),  # v1.1 and most others: the tanh form, "gelu_new"
    "gated-silu": nn.silu,  # UL2, Pile-T5
}


def relative_position_bucket(relative_position: np.ndarray, *, num_buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of each offset key − query, in [0, num_buckets).

    The lower half of the buckets is for keys to the left, the upper one for keys to the right. Half of a side's buckets
    hold one distance each, the other half grow logarithmically up to `max_distance`, and whatever is further shares
    the last one. arXiv:1910.10683, section 2.1.
    """
    offset = np.asarray(relative_position)
    distance = np.abs(offset)
    per_side = num_buckets // 2
    exact = per_side // 2
    # float32, because published weights were trained with buckets whose edges were rounded in float32
    ratio = np.log(np.maximum(distance, exact).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(math.log(max_distance / exact))
    coarse = exact + (ratio * np.float32(per_side - exact)).astype(np.int32)
    within = np.where(distance < exact, distance, np.minimum(coarse, per_side - 1))
    return np.where(offset > 0, per_side, 0) + within


class RMSNorm(nn.Module):
    """Scale by the root mean square, without mean or bias. [..., D] -> [..., D]"""

    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x32 = x.astype(jnp.float32)  # squares in float32: T5's residual stream reaches 1e4, bf16 loses the small terms
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.epsilon)
        return (x32 * scale.astype(jnp.float32)).astype(self.dtype)


class RelativeBias(nn.Module):
    """A learned bias per head and offset bucket, added to the attention logits. length -> [H, L, L] float32"""

    num_heads: int
    d_model: int
    num_buckets: int
    max_distance: int

    @nn.compact
    def __call__(self, length: int) -> jax.Array:
        std = self.d_model**-0.5
        table = self.param("embedding", nn.initializers.normal(std), (self.num_buckets, self.num_heads))
        position = np.arange(length)
        bucket_LL = relative_position_bucket(
            position[None, :] - position[:, None],
            num_buckets=self.num_buckets,
            max_distance=self.max_distance,
        )
        return jnp.transpose(table.astype(jnp.float32)[bucket_LL], (2, 0, 1))


def linear(features: int, std: float, dtype: Any, name: str) -> nn.Dense:
    """A matrix without bias, drawn from a normal of the given standard deviation: T5 has no other kind."""
    return nn.Dense(features, use_bias=False, kernel_init=nn.initializers.normal(std), dtype=dtype, name=name)


class Attention(nn.Module):
    """Multi-head self-attention without 1/sqrt(K): T5 moves that factor into the initialisation of q."""

    num_heads: int
    d_kv: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """x [B, L, D], bias float32, broadcastable to [B, H, L, L] -> [B, L, D]"""
        width = x.shape[-1]
        inner = self.num_heads * self.d_kv
        heads = (self.num_heads, self.d_kv)
        q = linear(inner, (width * self.d_kv) ** -0.5, self.dtype, "q")(x)
        k = linear(inner, width**-0.5, self.dtype, "k")(x)
        v = linear(inner, width**-0.5, self.dtype, "v")(x)
        q_BLHK, k_BLHK, v_BLHK = (a.reshape(*a.shape[:2], *heads) for a in (q, k, v))
        logits = jnp.einsum("blhk,bmhk->bhlm", q_BLHK, k_BLHK, preferred_element_type=jnp.float32)
        logits = logits + bias  # softmax in float32: bf16 loses mass
        weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
        # divided by their sum after mixing, K numbers a row and not L: on a CPU a forward pass takes half the time
        total = jnp.sum(weights, axis=-1, keepdims=True)
        mixed_BHLK = jnp.einsum("bhlm,bmhk->bhlk", weights.astype(self.dtype), v_BLHK) / total
        mixed = jnp.swapaxes(mixed_BHLK.astype(self.dtype), 1, 2).reshape(*x.shape[:2], inner)
        return linear(width, inner**-0.5, self.dtype, "o")(mixed)


class FeedForward(nn.Module):
    """f(x W), or f(x W_0) * (x W_1) where `kind` is gated (arXiv:2002.05202), projected back. [..., D] -> [..., D]"""

    kind: str
    d_ff: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        nonlinearity = NONLINEARITIES[self.kind]
        if self.kind.startswith("gated-"):
            hidden = nonlinearity(linear(self.d_ff, width**-0.5, self.dtype, "wi_0")(x))
            hidden = hidden * linear(self.d_ff, width**-0.5, self.dtype, "wi_1")(x)
        else:
            hidden = nonlinearity(linear(self.d_ff, width**-0.5, self.dtype, "wi")(x))
        return linear(width, self.d_ff**-0.5, self.dtype, "wo")(hidden)


def padding_bias(mask: jax.Array) -> jax.Array:
    """Logit bias that hides padding keys. bool [B, L] -> float32 [B, 1, 1, L]"""
    return jnp.where(mask, 0.0, MASKED_LOGIT)[:, None, None, :]


class T5Encoder(nn.Module):
    """A T5 encoder. Parameters take the dtype they are given in; `dtype` is that of the computation.

    relative_bias_per_layer: UMT5's biases, a table for each block; T5 has one for all, learned in the first block
    Raises UsageError for a `feed_forward_proj` that no known encoder has.
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
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """tokens int32 [B, L], mask bool [B, L] (True = a token) -> [B, L, D] in `dtype`, zero where mask is False."""
        if self.feed_forward_proj not in NONLINEARITIES:
            raise ConfigError(
                f'feed_forward_proj is "{self.feed_forward_proj}", expected one of {", ".join(NONLINEARITIES)}:'
                " choose an encoder that has one of these"
            )
        hides_padding = padding_bias(mask)

        def norm(name: str) -> RMSNorm:
            return RMSNorm(epsilon=self.layer_norm_epsilon, dtype=self.dtype, name=name)

        def logit_bias(name: str) -> jax.Array:
            table = RelativeBias(
                num_heads=self.num_heads,
                d_model=self.d_model,
                num_buckets=self.relative_attention_num_buckets,
                max_distance=self.relative_attention_max_distance,
                name=name,
            )
            return table(tokens.shape[1]) + hides_padding

        x = nn.Embed(
            self.vocab_size,
            self.d_model,
            embedding_init=nn.initializers.normal(1.0),
            dtype=jnp.float32,  # so that what blocks add to is float32: it grows until bf16 loses what they add
            name="token_embedding",
        )(tokens)
        shared = None if self.relative_bias_per_layer else logit_bias("relative_bias")
        for i in range(self.num_layers):
            bias = logit_bias(f"block_{i}_relative_bias") if shared is None else shared
            h = norm(f"block_{i}_attention_norm")(x)
            x = x + Attention(self.num_heads, self.d_kv, self.dtype, name=f"block_{i}_attention")(h, bias)
            h = norm(f"block_{i}_feed_forward_norm")(x)
            feed_forward = FeedForward(self.feed_forward_proj, self.d_ff, self.dtype, name=f"block_{i}_feed_forward")
            x = x + feed_forward(h)
        return jnp.where(mask[..., None], norm("final_norm")(x), 0)
