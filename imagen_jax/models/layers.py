"""Building blocks of both U-Nets.

Shapes: B batch, H W rows and columns, C channels, L text length, D width of the text embeddings, E width of the
conditioning vector, N heads, K channels per head. Compute is in `dtype`; parameters, norms and softmax are float32.
"""

from __future__ import annotations

import math
import zlib
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.models.attention_control import AttentionControl


def _sinusoidal_embedding(values: jax.Array, width: int) -> jax.Array:
    """Returns sines and cosines [B, width] of values [B] in [0, 1] (arXiv:1706.03762, Section 3.5).

    Values are scaled to the 1000 steps of DDPM.
    """
    frequencies = jnp.exp(-math.log(10_000.0) * jnp.arange(width // 2) / (width // 2))
    angles = 1000.0 * values[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def conv(channels: int, name: str, dtype: jnp.dtype, size: int = 3, stride: int = 1, zero: bool = False) -> nn.Conv:
    """Returns a convolution; `zero` initializes it to return 0, so that a residual block starts as the identity."""
    init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    return nn.Conv(channels, (size, size), (stride, stride), "SAME", kernel_init=init, dtype=dtype, name=name)


def upsample_conv(channels: int, name: str, dtype: jnp.dtype) -> nn.Conv:
    """Returns a 3×3 convolution of the images [B, 2H, 2W, C] that `upsample` makes of its input [B, H, W, C].

    The upsampled images are not made: of the nine pixels below a kernel, those that are copies of one pixel share the
    sum of their weights, so each of the four pixels of an output's 2×2 is a 2×2 convolution of the input, with 4/9 of
    the multiplications.
    """
    return nn.Conv(channels, (3, 3), dtype=dtype, name=name, conv_general_dilated=_upsample_conv_general_dilated)


# The row of the input, 0 or 1 of the two that count, that each row of a kernel meets for even and for odd output rows.
_ROWS_OF_TAPS = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))


def _upsample_conv_general_dilated(x: jax.Array, kernel: jax.Array, *_arguments: Any, **_options: Any) -> jax.Array:
    """Returns the convolution of upsampled images in place of `jax.lax.conv_general_dilated`."""
    rows = jnp.asarray(_ROWS_OF_TAPS, jnp.float32)
    kernels = jnp.einsum("pku,qlv,uvio->pqklio", rows, rows, kernel.astype(jnp.float32)).astype(kernel.dtype)
    batch, height, width = x.shape[:3]
    convolve = partial(
        jax.lax.conv_general_dilated, x, window_strides=(1, 1), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    # an even row takes the row above its own, an odd one the row below
    around = ((1, 0), (0, 1))
    phases = [[convolve(kernels[p, q], padding=(around[p], around[q])) for q in (0, 1)] for p in (0, 1)]
    channels = kernel.shape[-1]
    rows_of_pixels = [jnp.stack(row, axis=3).reshape(batch, height, 2 * width, channels) for row in phases]
    return jnp.stack(rows_of_pixels, axis=2).reshape(batch, 2 * height, 2 * width, channels)


class _Affine(nn.Module):
    """Learned scale and bias [C] of a norm."""

    @nn.compact
    def __call__(self, channels: int) -> tuple[jax.Array, jax.Array]:
        scale = self.param("scale", nn.initializers.ones, (channels,))
        return scale, self.param("bias", nn.initializers.zeros, (channels,))


class GroupNorm32(nn.Module):
    """GroupNorm in float32, with at most `groups` groups: gcd(groups, channels).

    The output is scaled by 1 + scale and shifted if a scale and a shift [B, C] are given. Statistics of channels are
    averaged to those of groups, and factors of a channel are multiplied before images are: with groups as an axis of
    images, the innermost loops of a CPU would be as short as a group.
    """

    groups: int

    @nn.compact
    def __call__(self, x: jax.Array, scale_shift: tuple[jax.Array, jax.Array] | None = None) -> jax.Array:
        scale, bias = _Affine(name="norm")(x.shape[-1])
        return group_norm(x, self.groups, scale, bias, scale_shift)


def group_norm(
    x: jax.Array,
    groups: int,
    scale: jax.Array,
    bias: jax.Array,
    scale_shift: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Returns features [B, H, W, C], normalized, times `scale` [C] plus `bias` [C]; see `GroupNorm32`."""
    # statistics in float32: bf16 sums over an image lose precision
    image = x.astype(jnp.float32)
    mean_BC, square_BC = _average_groups(
        jnp.stack([image.mean(axis=(1, 2)), jnp.square(image).mean(axis=(1, 2))]), groups
    )
    scale_BC = jax.lax.rsqrt(jnp.maximum(square_BC - jnp.square(mean_BC), 0.0) + 1e-5) * scale
    if scale_shift is not None:
        scale_BC, bias = scale_BC * (1 + scale_shift[0]), bias * (1 + scale_shift[0]) + scale_shift[1]
    shift_BC = bias - mean_BC * scale_BC
    return (image * scale_BC[:, None, None] + shift_BC[:, None, None]).astype(x.dtype)


def _average_groups(values: jax.Array, max_groups: int) -> jax.Array:
    """Returns each value [..., C] replaced by the mean of its group of channels, of which there are gcd(max_groups, C).

    On CPUs by matrix products: all else XLA would fuse into the loops over images, and compute for each pixel anew. On
    TPUs that is free, and products would cost a pass over the images.
    """
    channels = values.shape[-1]
    groups = math.gcd(max_groups, channels)
    size = channels // groups

    def by_products(values: jax.Array) -> jax.Array:
        is_in_group_CG = (jnp.arange(channels)[:, None] // size == jnp.arange(groups)).astype(jnp.float32)
        product = partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
        return product(product(values, is_in_group_CG) / size, is_in_group_CG.T)

    def by_reduction(values: jax.Array) -> jax.Array:
        return jnp.repeat(values.reshape(*values.shape[:-1], groups, size).mean(axis=-1), size, axis=-1)

    return jax.lax.platform_dependent(values, cpu=by_products, default=by_reduction)


class AdaGN(nn.Module):
    """Adaptive GroupNorm: scale and shift are predicted from the conditioning vector [B, E] (arXiv:2105.05233, Eq. 4).

    Used in each residual block and before the output layer, where the optimal contribution of z_t to eps or v depends
    on the noise level.
    """

    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        scale_shift = nn.Dense(2 * x.shape[-1], dtype=self.dtype, name="scale_shift")(embedding)
        scale, shift = jnp.split(scale_shift.astype(jnp.float32), 2, axis=-1)
        return GroupNorm32(self.groups, name="norm")(x, (scale, shift))


class InputSkip(nn.Module):
    """Adds the input images [B, H, W, n·C] to the output [B, H, W, C], each channel with a learned gain.

    The gains are predicted from the conditioning vector [B, E] and start at zero: a learned form of the skip connection
    in EDM's preconditioning (arXiv:2206.00364, Eq. 7). It lets a small network pass unchanged content through.
    """

    @nn.compact
    def __call__(self, x: jax.Array, images: jax.Array, embedding: jax.Array) -> jax.Array:
        gains = nn.Dense(images.shape[-1], kernel_init=nn.initializers.zeros, name="gain")(embedding.astype(x.dtype))
        batch, height, width, channels = x.shape
        return x + (images * gains[:, None, None, :]).reshape(batch, height, width, -1, channels).sum(axis=3)


class LearnedPositionEmbedding(nn.Module):
    """Adds a learned position embedding to features [B, H, W, C], the same for all images.

    It is a sum of the first `cosines` × `cosines` basis functions of the two-dimensional cosine transform, so that it
    spans images of any size. It lets attention to the text find the words about a pixel's position; without it, the
    only source of position is zero padding, which is learned late.

    Features are spread evenly over the unit square, whatever their number, unless `positions` says where each row and
    each column is: arrays [B, H] and [B, W] in [0, 1].
    """

    cosines: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, positions: tuple[jax.Array, jax.Array] | None = None) -> jax.Array:
        _, height, width, channels = x.shape
        # three times as strong as features, otherwise noise dominates the queries (measured against 1 and 6)
        init = nn.initializers.normal(3.0 / self.cosines)
        coefficients_UVC = self.param("waves", init, (self.cosines, self.cosines, channels)).astype(self.dtype)
        if positions is None:
            rows_HU, columns_WV = (
                _cosine_basis(_centers(side), self.cosines).astype(self.dtype) for side in (height, width)
            )
            return x + jnp.einsum("hu,wv,uvc->hwc", rows_HU, columns_WV, coefficients_UVC)
        rows_BHU, columns_BWV = (_cosine_basis(axis, self.cosines).astype(self.dtype) for axis in positions)
        return x + jnp.einsum("bhu,bwv,uvc->bhwc", rows_BHU, columns_BWV, coefficients_UVC)


def _centers(side: int) -> jax.Array:
    """Returns the centers of `side` pixels that are spread evenly over [0, 1]."""
    return (jnp.arange(side) + 0.5) / side


def _cosine_basis(positions: jax.Array, count: int) -> jax.Array:
    """Returns the first `count` functions of the cosine transform at positions [...] in [0, 1], [..., count].

    Each has a mean square of 1 over the centers of pixels.
    """
    frequencies = jnp.arange(count)
    return jnp.where(frequencies > 0, math.sqrt(2), 1.0) * jnp.cos(jnp.pi * positions[..., None] * frequencies)


class NoiseLevelEmbedding(nn.Module):
    """Embeds a noise level [B] in [0, 1] as [B, width]: sinusoids and two dense layers."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, level: jax.Array) -> jax.Array:
        x = _sinusoidal_embedding(level, max(self.width // 4, 2)).astype(self.dtype)
        x = nn.swish(nn.Dense(self.width, dtype=self.dtype, name="dense_0")(x))
        return nn.Dense(self.width, dtype=self.dtype, name="dense_1")(x)


class AttentionPooling(nn.Module):
    """Attention pooling of text [B, L, D] to a vector [B, width], with learned queries (arXiv:2205.11487, Section 2.4).

    Dropped text is zero and fully masked; all keys are then equal, and the result is one learned vector.
    """

    width: int
    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, text: jax.Array, mask: jax.Array) -> jax.Array:
        batch, length, _ = text.shape
        head = self.width // self.heads
        text = nn.LayerNorm(dtype=jnp.float32, name="norm")(text).astype(self.dtype)
        query_NK = self.param("query", nn.initializers.normal(1.0), (self.heads, head))
        # no bias: softmax is invariant to a constant over all keys
        key_BLNK = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name="key")(text).reshape(
            batch, length, self.heads, head
        )
        value_BLNK = nn.Dense(self.width, dtype=self.dtype, name="value")(text).reshape(batch, length, self.heads, head)
        logits_BNL = jnp.einsum("nk,blnk->bnl", query_NK.astype(self.dtype), key_BLNK) / math.sqrt(head)
        weights_BNL = _masked_softmax(logits_BNL, mask[:, None, :])
        pooled = jnp.einsum("bnl,blnk->bnk", weights_BNL.astype(self.dtype), value_BLNK).reshape(batch, self.width)
        return nn.Dense(self.width, dtype=self.dtype, name="out")(pooled)


def _masked_softmax(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the softmax over the last axis, in float32, of unmasked logits; uniform where all are masked.

    Args:
        logits: any float array.
        mask: bool, broadcastable to `logits`, True where a logit counts.
    """
    return jax.nn.softmax(_mask_logits(logits, mask), axis=-1)


def _mask_logits(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns float32 logits that softmax gives no weight where they are masked."""
    # softmax in float32: bf16 loses mass; a large negative number, not -inf, so that a fully masked row is not NaN
    return jnp.where(mask, logits.astype(jnp.float32), -1e30)


def attend(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the attention of queries to values, [B, N, Q, K].

    The sums of softmax divide its products with the values, which are smaller than its weights. Masked as in
    `_masked_softmax`.

    Args:
        query: [B, N, Q, K].
        key: [B, N, S, K].
        value: [B, N, S, K].
        mask: bool, broadcastable to [B, N, Q, S], True where a key counts.
    """
    logits_BNQS = _mask_logits(jnp.einsum("bnqk,bnsk->bnqs", query / math.sqrt(query.shape[-1]), key), mask)
    weights_BNQS = jnp.exp(logits_BNQS - jax.lax.stop_gradient(logits_BNQS.max(axis=-1, keepdims=True)))
    products = jnp.einsum(
        "bnqs,bnsk->bnqk", weights_BNQS.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
    return (products / weights_BNQS.sum(axis=-1, keepdims=True)).astype(value.dtype)


def attention_weights(query: jax.Array, key: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the weights of queries [B, N, Q, K] over keys [B, N, S, K], float32 [B, N, Q, S]; see `attend`."""
    return _masked_softmax(jnp.einsum("bnqk,bnsk->bnqs", query / math.sqrt(query.shape[-1]), key), mask)


class ConditioningEmbedding(nn.Module):
    """Embeds noise level, pooled text, and the augmentation level if any, as the conditioning vector [B, E]."""

    width: int
    text_pool_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, noise_level: jax.Array, text: jax.Array, mask: jax.Array, aug_level: jax.Array | None
    ) -> jax.Array:
        embedding = NoiseLevelEmbedding(self.width, self.dtype, name="noise_level")(noise_level)
        embedding += AttentionPooling(self.width, self.text_pool_heads, self.dtype, name="text_pooling")(text, mask)
        if aug_level is not None:
            embedding += NoiseLevelEmbedding(self.width, self.dtype, name="aug_level")(aug_level)
        return nn.swish(embedding)


class ResBlock(nn.Module):
    """GroupNorm–swish–conv twice with a 1×1 skip, the second norm scaled and shifted by the conditioning (BigGAN, ADM).

    `resample` halves ("down": mean of 2×2) or doubles ("up": nearest) the resolution within the block, as in ADM
    (arXiv:2105.05233, Section 3.1). The last convolution starts at zero. `dropout_keys` [B] are specific to this block.
    """

    channels: int
    groups: int
    dropout: float
    dtype: jnp.dtype
    resample: str = ""

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, dropout_keys: jax.Array | None = None) -> jax.Array:
        x = materialize(x)
        h = nn.swish(GroupNorm32(self.groups, name="norm_0")(x))
        if self.resample == "down":
            h, x = downsample(h), downsample(x)
        if self.resample == "up":
            h, x = upsample_conv(self.channels, "conv_0", self.dtype)(h), upsample(x)
        else:
            h = conv(self.channels, "conv_0", self.dtype)(h)
        h = nn.swish(AdaGN(self.groups, self.dtype, name="norm_1")(h, embedding))
        if self.dropout and dropout_keys is not None:
            h = dropout(h, self.dropout, dropout_keys)
        h = conv(self.channels, "conv_1", self.dtype, zero=True)(h)
        if x.shape[-1] != self.channels:
            x = conv(self.channels, "skip", self.dtype, size=1)(x)
        return x + h


def materialize(x: jax.Array) -> jax.Array:
    """Returns x, and makes XLA compute it and its gradient once instead of anew for each use, as it does on CPUs."""
    return jax.lax.optimization_barrier(x)


def dropout(x: jax.Array, rate: float, keys: jax.Array) -> jax.Array:
    """Returns x [B, ...] with dropout; the mask of each example depends on its own key only, not on the batch.

    Args:
        x: activations [B, ...].
        rate: fraction of activations set to zero; the others are scaled to preserve the mean.
        keys: [B], one key per example.
    """
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0)


def name_hash(name: str) -> int:
    """Returns a hash below 2^32 of a block's name."""
    return zlib.crc32(name.encode())


def fold_in_keys(keys: jax.Array, block_hash: jax.Array | int) -> jax.Array:
    """Returns the keys [B] of examples for one block, by the hash of its name."""
    return jax.vmap(lambda key: jax.random.fold_in(key, block_hash))(keys)


def downsample(x: jax.Array) -> jax.Array:
    """Returns images [B, H, W, C] downsampled to [B, H/2, W/2, C] by the mean of each 2×2."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def patchify(x: jax.Array, side: int) -> jax.Array:
    """Returns images [B, H, W, C] with patches folded into channels, [B, H/side, W/side, side²·C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // side, width // side, side * side * channels)


def unpatchify(x: jax.Array, side: int) -> jax.Array:
    """Returns the inverse of `patchify`: [B, H, W, side²·C] → [B, H·side, W·side, C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, side, side, channels // side**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height * side, width * side, channels // side**2)


def upsample(x: jax.Array) -> jax.Array:
    """Returns images [B, H, W, C] upsampled to [B, 2H, 2W, C] by nearest neighbor.

    Uses concatenation: after a broadcast XLA loses the sharding over the batch, and computes the following convolutions
    for the examples of other devices too.
    """
    batch, height, width, channels = x.shape
    columns = jnp.concatenate([x, x], axis=3).reshape(batch, height, 2 * width, channels)
    return jnp.concatenate([columns, columns], axis=2).reshape(batch, 2 * height, 2 * width, channels)


ATTENTION_TYPES = ("self", "self+text", "text")


class Attention(nn.Module):
    """Attention from pixels to pixels, to text, or to both with concatenated keys and values.

    `attention_type` is one of
        "self":      pixels attend to pixels;
        "self+text": to pixels and text in one softmax (the paper's base and first super-resolution stage);
        "text":      to text only, a separate cross-attention layer (the paper's second super-resolution stage).
    The output projection starts at zero. An MLP with `mlp_ratio` times the channels follows, if that is above 0.
    """

    attention_type: str
    head_channels: int
    groups: int
    mlp_ratio: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, text: jax.Array, mask: jax.Array, control: AttentionControl | None = None
    ) -> jax.Array:
        batch, height, width, channels = x.shape
        heads = channels // self.head_channels

        def split(tokens: jax.Array) -> jax.Array:
            return tokens.reshape(batch, -1, heads, self.head_channels).transpose(0, 2, 1, 3)

        x = materialize(x)
        pixels = GroupNorm32(self.groups, name="norm")(x).reshape(batch, height * width, channels)
        query_BNQK = split(nn.Dense(channels, dtype=self.dtype, name="query")(pixels))
        keys, values, masks = [], [], []
        # biases distinguish pixels from text; with only one of them, softmax is invariant to the bias
        key = partial(nn.Dense, channels, use_bias="+" in self.attention_type, dtype=self.dtype)
        if "self" in self.attention_type:
            keys.append(split(key(name="key")(pixels)))
            values.append(split(nn.Dense(channels, dtype=self.dtype, name="value")(pixels)))
            masks.append(jnp.ones((batch, height * width), bool))
        if "text" in self.attention_type:
            text = nn.LayerNorm(dtype=jnp.float32, name="text_norm")(text).astype(self.dtype)
            keys.append(split(key(name="text_key")(text)))
            values.append(split(nn.Dense(channels, dtype=self.dtype, name="text_value")(text)))
            masks.append(mask)
        key_BNSK, value_BNSK = jnp.concatenate(keys, axis=2), jnp.concatenate(values, axis=2)
        mask_BNQS = jnp.concatenate(masks, axis=1)[:, None, None, :]
        if control is None:
            attended_BNQK = attend(query_BNQK, key_BNSK, value_BNSK, mask_BNQS)
        else:
            length = text.shape[1] if "text" in self.attention_type else 0
            weights_BNQS = control.inject(attention_weights(query_BNQK, key_BNSK, mask_BNQS), length)
            attended_BNQK = jnp.einsum("bnqs,bnsk->bnqk", weights_BNQS.astype(self.dtype), value_BNSK)
        attended = attended_BNQK.transpose(0, 2, 1, 3).reshape(batch, height * width, channels)
        out = nn.Dense(channels, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")(attended)
        x = x + out.reshape(x.shape)
        return FeedForward(self.mlp_ratio, self.groups, self.dtype, name="mlp")(x) if self.mlp_ratio else x


class FeedForward(nn.Module):
    """Residual MLP with GroupNorm and a hidden layer of `mlp_ratio` times the channels; starts as the identity."""

    mlp_ratio: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        h = GroupNorm32(self.groups, name="norm")(x)
        h = nn.gelu(nn.Dense(self.mlp_ratio * channels, dtype=self.dtype, name="hidden")(h))
        return x + nn.Dense(channels, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")(h)


class AttentionStack(nn.Module):
    """Attention layers in sequence; `attention_types` such as `("self", "text")`, often empty."""

    attention_types: tuple[str, ...]
    head_channels: int
    groups: int
    mlp_ratio: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, text: jax.Array, mask: jax.Array, control: AttentionControl | None = None
    ) -> jax.Array:
        for index, attention_type in enumerate(self.attention_types):
            name = attention_type.replace("+", "_") + f"_{index}"
            attention = Attention(
                attention_type, self.head_channels, self.groups, self.mlp_ratio, self.dtype, name=name
            )
            x = attention(x, text, mask, control)
        return x
