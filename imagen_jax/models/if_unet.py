"""The U-Net of DeepFloyd IF, the only Imagen whose weights are public, with its arithmetic and its names of parameters.

It differs from the paper's: it reads every position of the text, padding too, without a mask; its attention normalizes
text over channels and positions; the pooled text comes from a class token; GELU is exact. Its first stage scales
nothing; the second sums its embeddings before one activation, and divides what its blocks return.

Parameters are named after those of diffusers' `UNet2DConditionModel`, whose files hold them: `down_blocks.0.resnets.1`
is the module `down_blocks_0_resnets_1`.

Shapes as in `layers`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.models.attention_control import AttentionControl
from imagen_jax.models.layers import (
    attend,
    attention_weights,
    conv,
    downsample,
    dropout,
    group_norm,
    materialize,
    name_hash,
    upsample,
    upsample_conv,
)
from imagen_jax.models.unet_base import KNOWN_STEM, REMAT_POLICIES, BlockContext, ConstraintFn
from imagen_jax.parallel.axes import IMAGE

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "silu": nn.silu,
}
TEXT_NORM_GROUPS = 32  # whatever those of images are


class _GroupNorm(nn.Module):
    """GroupNorm of features [B, H, W, C], then scaled by 1 + scale and shifted by [B, C] each, if they are given."""

    groups: int

    @nn.compact
    def __call__(self, x: jax.Array, scale_shift: tuple[jax.Array, jax.Array] | None = None) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return group_norm(x, self.groups, scale, self.param("bias", nn.initializers.zeros, scale.shape), scale_shift)


class _TextNorm(nn.Module):
    """GroupNorm of text [B, L, T] over each group of channels and all positions.

    Most positions of a short text are padding, which is nearly constant: the variance is that of deviations from the
    mean, as a difference of squares would cancel.
    """

    @nn.compact
    def __call__(self, text: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (text.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, scale.shape)
        groups = text.astype(jnp.float32).reshape(*text.shape[:2], TEXT_NORM_GROUPS, -1)
        deviations = groups - groups.mean(axis=(1, 3), keepdims=True)
        variance = jnp.square(deviations).mean(axis=(1, 3), keepdims=True)
        normalized = deviations * jax.lax.rsqrt(variance + 1e-5)
        return (normalized.reshape(text.shape) * scale + bias).astype(text.dtype)


class _LevelEmbedding(nn.Module):
    """Embeds indices [B] of noise levels as [B, width]: cosines and sines, and two dense layers."""

    sinusoids: int
    width: int
    activation: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, index: jax.Array) -> jax.Array:
        half = self.sinusoids // 2
        angles = index[:, None] * jnp.exp(-math.log(10_000.0) / half * jnp.arange(half))
        x = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1).astype(self.dtype)
        x = ACTIVATIONS[self.activation](nn.Dense(self.width, dtype=self.dtype, name="linear_1")(x))
        return nn.Dense(self.width, dtype=self.dtype, name="linear_2")(x)


class _TextPooling(nn.Module):
    """Attention of a class token, the mean of the text [B, L, D] with a learned position, to itself and the text."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, text: jax.Array) -> jax.Array:
        batch, _, width = text.shape
        position = self.param("positional_embedding", nn.initializers.normal(width**-0.5), (1, width))
        token = text.mean(axis=1, keepdims=True) + position.astype(text.dtype)
        tokens = jnp.concatenate([token, text], axis=1)

        def project(name: str, values: jax.Array) -> jax.Array:
            values = nn.Dense(width, dtype=self.dtype, name=name)(values)
            return values.reshape(batch, -1, self.heads, width // self.heads).transpose(0, 2, 1, 3)

        query, key, value = project("q_proj", token), project("k_proj", tokens), project("v_proj", tokens)
        pooled = attend(query, key, value, jnp.ones((1, 1, 1, 1), bool))
        return pooled.transpose(0, 2, 1, 3).reshape(batch, width)


class _TextEmbedding(nn.Module):
    """Pools text [B, L, D], as the encoder returns it, to a part of the conditioning vector [B, width]."""

    heads: int
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, text: jax.Array) -> jax.Array:
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5, dtype=jnp.float32)
        x = norm(name="norm1")(text).astype(self.dtype)
        x = _TextPooling(self.heads, self.dtype, name="pool")(x)
        x = nn.Dense(self.width, dtype=self.dtype, name="proj")(x)
        return norm(name="norm2")(x).astype(self.dtype)


class _ResBlock(nn.Module):
    """GroupNorm, activation and convolution twice, the second norm scaled and shifted by the conditioning vector.

    The sum with the input is divided by `scale`. `resample` as in `layers.ResBlock`. With `activate` the conditioning
    vector passes the activation in each block; otherwise it has passed one.
    """

    channels: int
    groups: int
    activation: str
    activate: bool
    scale: float
    dropout: float
    dtype: jnp.dtype
    resample: str = ""

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, dropout_keys: jax.Array | None = None) -> jax.Array:
        activation = ACTIVATIONS[self.activation]
        x = materialize(x)
        h = activation(_GroupNorm(self.groups, name="norm1")(x))
        if self.resample == "down":
            h, x = downsample(h), downsample(x)
        if self.resample == "up":
            h, x = upsample_conv(self.channels, "conv1", self.dtype)(h), upsample(x)
        else:
            h = conv(self.channels, "conv1", self.dtype)(h)
        if self.activate:
            embedding = activation(embedding)
        scale_shift = nn.Dense(2 * self.channels, dtype=self.dtype, name="time_emb_proj")(embedding)
        scale, shift = jnp.split(scale_shift.astype(jnp.float32), 2, axis=-1)
        h = activation(_GroupNorm(self.groups, name="norm2")(h, (scale, shift)))
        if self.dropout and dropout_keys is not None:
            h = dropout(h, self.dropout, dropout_keys)
        h = conv(self.channels, "conv2", self.dtype, zero=True)(h)
        if x.shape[-1] != self.channels:
            x = conv(self.channels, "conv_shortcut", self.dtype, size=1)(x)
        return (x + h) / self.scale


class _Attention(nn.Module):
    """Adds to pixels [B, H, W, C] their attention to pixels and all positions of a text [B, L, T], in one softmax."""

    head_channels: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array, control: AttentionControl | None = None) -> jax.Array:
        batch, height, width, channels = x.shape
        heads, length = channels // self.head_channels, text.shape[1]

        def project(name: str, tokens: jax.Array) -> jax.Array:
            tokens = nn.Dense(channels, dtype=self.dtype, name=name)(tokens)
            return tokens.reshape(batch, -1, heads, self.head_channels).transpose(0, 2, 1, 3)

        x = materialize(x)
        pixels = _GroupNorm(self.groups, name="group_norm")(x).reshape(batch, height * width, channels)
        text = _TextNorm(name="norm_cross")(text)
        query = project("to_q", pixels)
        # pixels before text, as `AttentionControl` has it; the order of keys makes no difference
        key = jnp.concatenate([project("to_k", pixels), project("add_k_proj", text)], axis=2)
        value = jnp.concatenate([project("to_v", pixels), project("add_v_proj", text)], axis=2)
        mask = jnp.ones((1, 1, 1, 1), bool)
        if control is None:
            attended = attend(query, key, value, mask)
        else:
            weights = control.inject(attention_weights(query, key, mask), length)
            attended = jnp.einsum("bnqs,bnsk->bnqk", weights.astype(self.dtype), value)
        attended = attended.transpose(0, 2, 1, 3).reshape(batch, height * width, channels)
        out = nn.Dense(channels, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="to_out_0")(attended)
        return x + out.reshape(x.shape)


class IFUNet(nn.Module):
    """The U-Net of a stage of DeepFloyd IF; called as `UNetBase` is, with the same shapes.

    Attributes:
        image_channels: channels of the image.
        out_channels: channels of the output: those of eps, and as many of v, which interpolates variances.
        widths: channels of each level; each has half the resolution of the previous one.
        num_res_blocks: residual blocks of each level of the down path; each level of the up path has one more.
        attention: for each level, whether attention follows its blocks; it always does in the middle.
        head_channels: channels of an attention head.
        text_dim: channels that the text embeddings are projected to.
        text_pool_heads: heads of the attention pooling over the text.
        num_groups: groups of each GroupNorm of images.
        cond_dim: width of the conditioning vector; 0 for four times the first level.
        activation: a key of `ACTIVATIONS`.
        activate_once: whether the conditioning vector passes a GELU once, and none in the blocks.
        res_scale: what the sums of residual blocks are divided by; `middle_scale` in the middle.
        middle_scale: see `res_scale`.
        dropout: dropout rate in training.
        dtype: dtype of the compute; parameters, norms and softmax stay float32.
        remat: a key of `REMAT_POLICIES`.
        constrain: applies sharding constraints to features.
    """

    image_channels: int
    out_channels: int
    widths: tuple[int, ...]
    num_res_blocks: tuple[int, ...]
    attention: tuple[bool, ...]
    head_channels: int
    text_dim: int
    text_pool_heads: int
    num_groups: int
    cond_dim: int
    activation: str
    activate_once: bool
    res_scale: float
    middle_scale: float
    dropout: float
    dtype: jnp.dtype
    remat: str
    constrain: ConstraintFn

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        noise_level: jax.Array,
        text: jax.Array,
        text_mask: jax.Array,
        low_res: jax.Array | None = None,
        aug_level: jax.Array | None = None,
        dropout_keys: jax.Array | None = None,
        known: jax.Array | None = None,
        control: AttentionControl | None = None,
        positions: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        """Returns the network's prediction [B, H, W, out_channels], float32; see `UNetBase`.

        `noise_level` and `aug_level` are indices of the noise levels of training, from 0 to 999. `text` has the
        embeddings of padding too, and `text_mask` is not read. The network has no position embedding.
        """
        del positions
        text = text.astype(self.dtype)
        embedding = self._embedding(noise_level, text, aug_level)
        text = nn.Dense(self.text_dim, dtype=self.dtype, name="encoder_hid_proj")(text)
        images = z if low_res is None else jnp.concatenate([z, low_res], axis=-1)
        x = conv(self.widths[0], "conv_in", self.dtype)(images.astype(self.dtype))
        if known is not None:
            x += conv(self.widths[0], KNOWN_STEM, self.dtype, zero=True)(known.astype(self.dtype))

        x = self._backbone(x, BlockContext(embedding, text, text_mask, dropout_keys, control))

        x = ACTIVATIONS[self.activation](_GroupNorm(self.num_groups, name="conv_norm_out")(x))
        return conv(self.out_channels, "conv_out", self.dtype, zero=True)(x).astype(jnp.float32)

    def _embedding(self, noise_level: jax.Array, text: jax.Array, aug_level: jax.Array | None) -> jax.Array:
        width = self.cond_dim or 4 * self.widths[0]
        level = functools.partial(_LevelEmbedding, self.widths[0], width, self.activation, self.dtype)
        embedding = level(name="time_embedding")(noise_level)
        if aug_level is not None:
            embedding += level(name="class_embedding")(aug_level)
        embedding += _TextEmbedding(self.text_pool_heads, width, self.dtype, name="add_embedding")(text)
        return ACTIVATIONS["gelu"](embedding) if self.activate_once else embedding

    def _backbone(self, x: jax.Array, context: BlockContext) -> jax.Array:
        skips, levels = [x], len(self.widths)
        for level, (width, blocks) in enumerate(zip(self.widths, self.num_res_blocks, strict=True)):
            for index in range(blocks):
                x = self._block(x, context, width, f"down_blocks_{level}", index, self.attention[level])
                skips.append(x)
            if level < levels - 1:
                x = self._res_block(x, context, width, f"down_blocks_{level}_downsamplers_0", resample="down")
                skips.append(x)

        x = self._res_block(x, context, self.widths[-1], "mid_block_resnets_0", self.middle_scale)
        x = self._attention(x, context, "mid_block_attentions_0")
        x = self._res_block(x, context, self.widths[-1], "mid_block_resnets_1", self.middle_scale)

        for level in reversed(range(levels)):
            name = f"up_blocks_{levels - 1 - level}"
            for index in range(self.num_res_blocks[level] + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = self._block(x, context, self.widths[level], name, index, self.attention[level])
            if level > 0:
                x = self._res_block(x, context, self.widths[level], f"{name}_upsamplers_0", resample="up")
        return x

    def _block(
        self, x: jax.Array, context: BlockContext, width: int, name: str, index: int, attends: bool
    ) -> jax.Array:
        x = self._res_block(x, context, width, f"{name}_resnets_{index}")
        return self._attention(x, context, f"{name}_attentions_{index}") if attends else x

    def _res_block(
        self,
        x: jax.Array,
        context: BlockContext,
        channels: int,
        name: str,
        scale: float | None = None,
        resample: str = "",
    ) -> jax.Array:
        block = self._with_remat(_ResBlock)(
            channels,
            self.num_groups,
            self.activation,
            not self.activate_once,
            self.res_scale if scale is None else scale,
            self.dropout,
            self.dtype,
            resample,
            name=name,
        )
        x = block(x, context.embedding, context.dropout_keys_for(name_hash(name)))
        return self.constrain(x, IMAGE)

    def _attention(self, x: jax.Array, context: BlockContext, name: str) -> jax.Array:
        attention = self._with_remat(_Attention)(self.head_channels, self.num_groups, self.dtype, name=name)
        return self.constrain(attention(x, context.text, context.control), IMAGE)

    def _with_remat(self, module: type[nn.Module]) -> type[nn.Module]:
        policy = REMAT_POLICIES[self.remat]
        return nn.remat(module, policy=policy) if policy else module
