"""The blocks that both U-Nets are made of.

Shapes: B batch, H W rows and columns, C channels, L text length, D width of the text embeddings, E width of the
conditioning vector, N heads, K channels a head. All compute is in ``dtype``; parameters, norms and softmax are float32.
"""

from __future__ import annotations

import math
import zlib
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp


def sinusoidal_embedding(values: jax.Array, width: int) -> jax.Array:
    """Sines and cosines [B, width] of values [B] in [0, 1] (arXiv:1706.03762; scaled to the 1000 steps of DDPM)."""
    frequencies = jnp.exp(-math.log(10_000.0) * jnp.arange(width // 2) / (width // 2))
    angles = 1000.0 * values[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def conv(channels: int, name: str, dtype: jnp.dtype, size: int = 3, stride: int = 1, zero: bool = False) -> nn.Conv:
    """A convolution; ``zero`` initialises it to return 0, so that a residual branch starts as the identity."""
    init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    return nn.Conv(channels, (size, size), (stride, stride), "SAME", kernel_init=init, dtype=dtype, name=name)


class Norm(nn.Module):
    """GroupNorm in float32; ``groups`` at most, fewer where that many do not divide the channels."""

    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        groups = math.gcd(self.groups, x.shape[-1])
        # statistics in float32: bf16 sums over an image lose their last digits
        return nn.GroupNorm(groups, epsilon=1e-5, dtype=jnp.float32, name="norm")(x).astype(x.dtype)


class ModulatedNorm(nn.Module):
    """GroupNorm whose scale and shift are set by the conditioning vector [B, E] (adaptive group norm of ADM).

    It stands in every residual block, and before the output: there the share of z_t in a prediction of eps or v
    changes with the noise level.
    """

    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        scale_shift = nn.Dense(2 * x.shape[-1], dtype=self.dtype, name="scale_shift")(embedding)[:, None, None, :]
        scale, shift = jnp.split(scale_shift, 2, axis=-1)
        return Norm(self.groups, name="norm")(x) * (1 + scale) + shift


class InputSkip(nn.Module):
    """The output [B, H, W, C] plus the input images [B, H, W, n·C], each of their channels by a gain that is learned.

    The gains are a function of the conditioning vector [B, E] and start at zero: the learned form of the skip that
    preconditions a denoiser (arXiv:2206.00364, Eq. 7). Through it a small network passes what needs no change.
    """

    @nn.compact
    def __call__(self, x: jax.Array, images: jax.Array, embedding: jax.Array) -> jax.Array:
        gains = nn.Dense(images.shape[-1], kernel_init=nn.initializers.zeros, name="gain")(embedding.astype(x.dtype))
        batch, height, width, channels = x.shape
        return x + (images * gains[:, None, None, :]).reshape(batch, height, width, -1, channels).sum(axis=3)


class Positions(nn.Module):
    """Adds to features [B, H, W, C] a learned picture that is the same for all images: it tells a pixel its place.

    It is made of the first ``cosines`` × ``cosines`` waves of the two-dimensional cosine transform, so it spans the
    image whatever its size. By it, attention to the text finds the words that speak of a pixel's place; without it
    pixels know their place only from padding, and learn it last.
    """

    cosines: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        _, height, width, channels = x.shape
        # three times as strong as features: noise would else drown it in the queries (measured against 1 and 6)
        init = nn.initializers.normal(3.0 / self.cosines)
        waves_UVC = self.param("waves", init, (self.cosines, self.cosines, channels)).astype(self.dtype)
        rows_HU, columns_WV = (cosine_basis(side, self.cosines).astype(self.dtype) for side in (height, width))
        return x + jnp.einsum("hu,wv,uvc->hwc", rows_HU, columns_WV, waves_UVC)


def cosine_basis(side: int, count: int) -> jax.Array:
    """The first ``count`` waves of the cosine transform at the middles of ``side`` pixels, each of mean square 1.

    Returns [side, count].
    """
    middles = (jnp.arange(side) + 0.5) / side
    waves = jnp.arange(count)
    return jnp.where(waves > 0, math.sqrt(2), 1.0) * jnp.cos(jnp.pi * middles[:, None] * waves)


class NoiseEmbedding(nn.Module):
    """A noise level [B] in [0, 1] → [B, width]: sinusoids through two dense layers."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, level: jax.Array) -> jax.Array:
        x = sinusoidal_embedding(level, max(self.width // 4, 2)).astype(self.dtype)
        x = nn.swish(nn.Dense(self.width, dtype=self.dtype, name="dense_0")(x))
        return nn.Dense(self.width, dtype=self.dtype, name="dense_1")(x)


class TextPooling(nn.Module):
    """Attention pooling of text [B, L, D] to a vector [B, width], by learned queries (Section 2.4 of arXiv:2205.11487).

    Where nothing is visible (a dropped caption) the keys are all alike, and so the result is one learned vector.
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
        # no bias: softmax ignores what is the same for all keys
        key_BLNK = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name="key")(text).reshape(
            batch, length, self.heads, head
        )
        value_BLNK = nn.Dense(self.width, dtype=self.dtype, name="value")(text).reshape(batch, length, self.heads, head)
        logits_BNL = jnp.einsum("nk,blnk->bnl", query_NK.astype(self.dtype), key_BLNK) / math.sqrt(head)
        weights_BNL = masked_softmax(logits_BNL, mask[:, None, :])
        pooled = jnp.einsum("bnl,blnk->bnk", weights_BNL.astype(self.dtype), value_BLNK).reshape(batch, self.width)
        return nn.Dense(self.width, dtype=self.dtype, name="out")(pooled)


def masked_softmax(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax over the last axis, in float32, of what the mask shows; even where it shows nothing."""
    # softmax in float32: bf16 loses mass; a large negative number, not -inf, so that an empty row is no NaN
    return jax.nn.softmax(jnp.where(mask, logits.astype(jnp.float32), -1e30), axis=-1)


class Conditioning(nn.Module):
    """The vector [B, E] that every residual block gets: noise level, pooled text, and the augmentation level if any."""

    width: int
    text_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, noise_level: jax.Array, text: jax.Array, mask: jax.Array, aug_level: jax.Array | None
    ) -> jax.Array:
        embedding = NoiseEmbedding(self.width, self.dtype, name="noise_level")(noise_level)
        embedding += TextPooling(self.width, self.text_heads, self.dtype, name="text_pooling")(text, mask)
        if aug_level is not None:
            embedding += NoiseEmbedding(self.width, self.dtype, name="aug_level")(aug_level)
        return nn.swish(embedding)


class ResBlock(nn.Module):
    """GroupNorm–swish–conv twice with a 1×1 skip, the second norm scaled and shifted by the conditioning (BigGAN, ADM).

    ``resample`` halves ("down": mean of 2×2) or doubles ("up": nearest) the image within the block, as in ADM
    (arXiv:2105.05233, Section 3.1). The last convolution starts at zero. The keys [B] are of this block's dropout.
    """

    channels: int
    groups: int
    dropout: float
    dtype: jnp.dtype
    resample: str = ""

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, dropout_keys: jax.Array | None = None) -> jax.Array:
        h = nn.swish(Norm(self.groups, name="norm_0")(x))
        if self.resample:
            change = downsample if self.resample == "down" else upsample
            h, x = change(h), change(x)
        h = conv(self.channels, "conv_0", self.dtype)(h)
        h = nn.swish(ModulatedNorm(self.groups, self.dtype, name="norm_1")(h, embedding))
        if self.dropout and dropout_keys is not None:
            h = drop(h, self.dropout, dropout_keys)
        h = conv(self.channels, "conv_1", self.dtype, zero=True)(h)
        if x.shape[-1] != self.channels:
            x = conv(self.channels, "skip", self.dtype, size=1)(x)
        return x + h


def drop(x: jax.Array, rate: float, keys: jax.Array) -> jax.Array:
    """x [B, ...] with a share of it zero and the rest larger, to the same mean.

    What of example i is dropped depends on its key, of the keys [B], alone: not on the batch it is in.
    """
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0)


def place_number(name: str) -> int:
    """A number below 2^32 for the place in a network that has a name."""
    return zlib.crc32(name.encode())


def keys_of_place(keys: jax.Array, place: jax.Array | int) -> jax.Array:
    """The keys [B] of examples as those of one place of a network, by its number: each drops its own."""
    return jax.vmap(lambda key: jax.random.fold_in(key, place))(keys)


def downsample(x: jax.Array) -> jax.Array:
    """[B, H, W, C] → [B, H/2, W/2, C], the mean of each 2×2."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def to_patches(x: jax.Array, side: int) -> jax.Array:
    """[B, H, W, C] → [B, H/side, W/side, side²·C]: each square of pixels as one pixel."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // side, width // side, side * side * channels)


def from_patches(x: jax.Array, side: int) -> jax.Array:
    """The inverse of ``to_patches``."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, side, side, channels // side**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height * side, width * side, channels // side**2)


def upsample(x: jax.Array) -> jax.Array:
    """[B, H, W, C] → [B, 2H, 2W, C], nearest.

    By concatenation: behind a broadcast XLA no longer sees that each device has examples of its own, and has the
    convolutions that follow done for those of others too.
    """
    batch, height, width, channels = x.shape
    columns = jnp.concatenate([x, x], axis=3).reshape(batch, height, 2 * width, channels)
    return jnp.concatenate([columns, columns], axis=2).reshape(batch, 2 * height, 2 * width, channels)


ATTENTION_KINDS = ("self", "self+text", "text")


class Attention(nn.Module):
    """Attention of an image's pixels to ``self``, to the text, or to both with the keys and values concatenated.

    ``kind`` is one of
        "self":      pixels attend to pixels;
        "self+text": to pixels and text in one softmax (the paper's base and first super-resolution stage);
        "text":      to text alone, a cross-attention layer of its own (its second super-resolution stage).
    The output projection starts at zero. With ``mlp`` > 0 a feed-forward layer of that many times the channels follows.
    """

    kind: str
    head_channels: int
    groups: int
    mlp: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array, mask: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        heads = channels // self.head_channels

        def split(tokens: jax.Array) -> jax.Array:
            return tokens.reshape(batch, -1, heads, self.head_channels)

        pixels = Norm(self.groups, name="norm")(x).reshape(batch, height * width, channels)
        query_BQNK = split(nn.Dense(channels, dtype=self.dtype, name="query")(pixels))
        keys, values, masks = [], [], []
        # a bias tells pixels from text; of keys of one kind it would be the same for all, which softmax ignores
        key = partial(nn.Dense, channels, use_bias="+" in self.kind, dtype=self.dtype)
        if "self" in self.kind:
            keys.append(split(key(name="key")(pixels)))
            values.append(split(nn.Dense(channels, dtype=self.dtype, name="value")(pixels)))
            masks.append(jnp.ones((batch, height * width), bool))
        if "text" in self.kind:
            text = nn.LayerNorm(dtype=jnp.float32, name="text_norm")(text).astype(self.dtype)
            keys.append(split(key(name="text_key")(text)))
            values.append(split(nn.Dense(channels, dtype=self.dtype, name="text_value")(text)))
            masks.append(mask)
        key_BSNK, value_BSNK = jnp.concatenate(keys, axis=1), jnp.concatenate(values, axis=1)
        logits_BNQS = jnp.einsum("bqnk,bsnk->bnqs", query_BQNK, key_BSNK) / math.sqrt(self.head_channels)
        weights_BNQS = masked_softmax(logits_BNQS, jnp.concatenate(masks, axis=1)[:, None, None, :])
        attended = jnp.einsum("bnqs,bsnk->bqnk", weights_BNQS.astype(self.dtype), value_BSNK)
        attended = attended.reshape(batch, height * width, channels)
        out = nn.Dense(channels, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")(attended)
        x = x + out.reshape(x.shape)
        return FeedForward(self.mlp, self.groups, self.dtype, name="mlp")(x) if self.mlp else x


class FeedForward(nn.Module):
    """Norm, a hidden layer of ``times`` the channels, and back, added to the input; starts as the identity."""

    times: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        h = Norm(self.groups, name="norm")(x)
        h = nn.gelu(nn.Dense(self.times * channels, dtype=self.dtype, name="hidden")(h))
        return x + nn.Dense(channels, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")(h)


class AttentionStack(nn.Module):
    """The attention layers of one place in a U-Net, in order; ``kinds`` such as ``("self", "text")``, often empty."""

    kinds: tuple[str, ...]
    head_channels: int
    groups: int
    mlp: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array, mask: jax.Array) -> jax.Array:
        for index, kind in enumerate(self.kinds):
            name = kind.replace("+", "_") + f"_{index}"
            x = Attention(kind, self.head_channels, self.groups, self.mlp, self.dtype, name=name)(x, text, mask)
        return x
