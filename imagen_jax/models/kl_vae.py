"""A convolutional variational autoencoder of images, whose latents another stage can be trained on.

Its form is that of latent diffusion (arXiv:2112.10752, Appendix E.1): residual blocks at each level, half the size from
level to level, and attention at the smallest one. Latents are as many times smaller as there are steps between levels.

Shapes: B batch, H W rows and columns of images, h w those of latents, C channels, c channels of latents. Compute is in
`dtype`; parameters, norms and softmax are float32.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.models.layers import GroupNorm32, attend, conv, materialize, upsample_conv
from imagen_jax.models.unet_base import ConstraintFn, no_constraint
from imagen_jax.parallel.axes import IMAGE

# Beyond these, a posterior's variance is 0 or infinite in float32.
_MIN_LOG_VARIANCE, _MAX_LOG_VARIANCE = -30.0, 20.0


class KLVAE(nn.Module):
    """An encoder to the posterior of latents, and a decoder (arXiv:1312.6114).

    Attributes:
        image_channels: channels C of images.
        latent_channels: channels c of latents.
        channels: channels of the first level.
        channel_mult: channels of each level, as multiples; each level has half the size of the previous one.
        num_res_blocks: residual blocks of each level of the encoder; the decoder has one more at each.
        middle_attention: whether pixels of the smallest level attend to each other.
        num_groups: groups of each GroupNorm.
        dtype: of the computation.
        constrain: shards features by example and rows, see `UNetBase`.
    """

    image_channels: int
    latent_channels: int
    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: tuple[int, ...]
    middle_attention: bool
    num_groups: int
    dtype: jnp.dtype
    constrain: ConstraintFn = no_constraint

    def setup(self) -> None:
        widths = tuple(self.channels * multiple for multiple in self.channel_mult)
        shared = (widths, self.num_res_blocks, self.middle_attention, self.num_groups, self.dtype, self.constrain)
        self.encoder = _Encoder(2 * self.latent_channels, *shared)
        self.decoder = _Decoder(self.image_channels, *shared)

    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the posterior's mean and log-variance, float32 [B, h, w, c] each, of images [B, H, W, C]."""
        mean, log_variance = jnp.split(self.encoder(images), 2, axis=-1)
        return mean, jnp.clip(log_variance, _MIN_LOG_VARIANCE, _MAX_LOG_VARIANCE)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Returns images, float32 [B, H, W, C], not clipped, of latents [B, h, w, c]."""
        image: jax.Array = self.decoder(latents)
        return image

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the images of the posterior's mean, [B, H, W, C]."""
        return self.decode(self.encode(images)[0])


class _Half(nn.Module):
    """What encoder and decoder have in common; attributes as those of `KLVAE`, and `outputs`, the channels made."""

    outputs: int
    widths: tuple[int, ...]
    num_res_blocks: tuple[int, ...]
    middle_attention: bool
    num_groups: int
    dtype: jnp.dtype
    constrain: ConstraintFn

    def _stem(self, x: jax.Array, width: int) -> jax.Array:
        return self.constrain(conv(width, "stem", self.dtype)(x.astype(self.dtype)), IMAGE)

    def _blocks(self, x: jax.Array, level: int, count: int) -> jax.Array:
        """Returns features after the residual blocks of a level."""
        for block in range(count):
            x = _Block(self.widths[level], self.num_groups, self.dtype, name=f"level_{level}_res_{block}")(x)
        return x

    def _middle(self, x: jax.Array) -> jax.Array:
        """Returns features [B, h, w, C] after the blocks of the smallest level."""
        x = _Block(x.shape[-1], self.num_groups, self.dtype, name="middle_res_0")(x)
        if self.middle_attention:
            x = _PixelAttention(self.num_groups, self.dtype, name="middle_attend")(x)
        return _Block(x.shape[-1], self.num_groups, self.dtype, name="middle_res_1")(x)

    def _out(self, x: jax.Array) -> jax.Array:
        """Returns features [B, H, W, C] as the float32 output [B, H, W, outputs]."""
        x = nn.swish(GroupNorm32(self.num_groups, name="out_norm")(x))
        return conv(self.outputs, "out", self.dtype)(x).astype(jnp.float32)


class _Encoder(_Half):
    """Images [B, H, W, C] to features [B, h, w, outputs]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self._stem(x, self.widths[0])
        for level, width in enumerate(self.widths):
            x = self._blocks(x, level, self.num_res_blocks[level])
            if level < len(self.widths) - 1:
                x = conv(width, f"level_{level}_halve", self.dtype, stride=2)(x)
            x = self.constrain(x, IMAGE)
        return self._out(self._middle(x))


class _Decoder(_Half):
    """Latents [B, h, w, c] to images [B, H, W, outputs]."""

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        x = self._middle(self._stem(z, self.widths[-1]))
        for level in reversed(range(len(self.widths))):
            x = self._blocks(x, level, self.num_res_blocks[level] + 1)
            if level > 0:
                x = upsample_conv(self.widths[level], f"level_{level}_double", self.dtype)(x)
            x = self.constrain(x, IMAGE)
        return self._out(x)


class _Block(nn.Module):
    """GroupNorm–swish–conv twice with a 1×1 skip, without conditioning; the last convolution starts at zero."""

    channels: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = materialize(x)
        h = conv(self.channels, "conv_0", self.dtype)(nn.swish(GroupNorm32(self.groups, name="norm_0")(x)))
        h = nn.swish(GroupNorm32(self.groups, name="norm_1")(h))
        h = conv(self.channels, "conv_1", self.dtype, zero=True)(h)
        if x.shape[-1] != self.channels:
            x = conv(self.channels, "skip", self.dtype, size=1)(x)
        return x + h


class _PixelAttention(nn.Module):
    """Attention from pixels to pixels with one head; the output projection starts at zero."""

    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        pixels = GroupNorm32(self.groups, name="norm")(x).reshape(batch, 1, height * width, channels)
        dense = partial(nn.Dense, channels, dtype=self.dtype)
        query, key, value = (dense(name=name)(pixels) for name in ("query", "key", "value"))
        attended = attend(query, key, value, jnp.ones((1, 1, 1, height * width), bool))
        out = dense(kernel_init=nn.initializers.zeros, name="out")(attended)
        return x + out.reshape(x.shape)


class PatchDiscriminator(nn.Module):
    """Scores of patches: how much each looks like one of a real image (arXiv:1611.07004, Section 3.2.2).

    Norms are of groups within an image, not of a batch, so that the score of an image does not depend on the others.

    Attributes:
        channels: of the first level; each further one has twice as many, up to eight times.
        levels: convolutions that halve the size.
        num_groups: groups of each GroupNorm.
        dtype: of the computation.
    """

    channels: int
    levels: int
    num_groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns scores, float32 [B, h, w], of images [B, H, W, C]."""
        x = images.astype(self.dtype)
        for level in range(self.levels):
            x = conv(self.channels * min(2**level, 8), f"level_{level}", self.dtype, size=4, stride=2)(x)
            # without a norm at first: it would hide the colors of an image
            x = nn.leaky_relu(GroupNorm32(self.num_groups, name=f"norm_{level}")(x) if level else x, 0.2)
        return conv(1, "out", self.dtype)(x).astype(jnp.float32)[..., 0]
