"""A hierarchical VAE: a bottom-up encoder, and a top-down decoder with groups of latents at each resolution.

After VDVAE (arXiv:2011.10650) and NVAE (arXiv:2007.03898), with the residual blocks of the U-Nets here.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.models.hvae_blocks import Group, LatentBlock, VectorCondition
from imagen_jax.models.layers import AttentionStack, GroupNorm32, ResBlock, conv
from imagen_jax.models.unet_base import REMAT_POLICIES, ConstraintFn


class HVAEOutput(NamedTuple):
    """What the network makes of an image, or of noise.

    Attributes:
        pixels: parameters of the likelihood of each pixel, float32 [B, H, W, out_channels].
        groups: the groups of latents, from the coarsest to the finest.
    """

    pixels: jax.Array
    groups: tuple[Group, ...]


class HVAE(nn.Module):
    """A hierarchical VAE, conditioned on text, and on a low-resolution image for super-resolution.

    Attributes:
        image_channels: channels of the image.
        out_channels: numbers that describe the likelihood of a pixel.
        channels: channels of the first level.
        channel_mult: channels of each level, as multiples of `channels`; each level has half the resolution of the
            previous one.
        num_res_blocks: residual blocks of each level of the encoder.
        latent_groups: groups of latents of each level, in the decoder; the last level has one at least.
        latent_channels: channels of a group's latents.
        attention_types: attention layers after each group of a level, see `layers.Attention`.
        head_channels: channels of an attention head.
        cond_dim_mult: width of the conditioning vector, as a multiple of `channels`.
        text_pool_heads: heads of the attention pooling over the text.
        num_groups: groups of each GroupNorm.
        dtype: dtype of the compute; parameters, norms, latents and the output are float32.
        remat: a key of `REMAT_POLICIES`.
        constrain: applies sharding constraints to inputs.
    """

    image_channels: int
    out_channels: int
    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: tuple[int, ...]
    latent_groups: tuple[int, ...]
    latent_channels: int
    attention_types: tuple[tuple[str, ...], ...]
    head_channels: int
    cond_dim_mult: int
    text_pool_heads: int
    num_groups: int
    dtype: jnp.dtype
    remat: str
    constrain: ConstraintFn

    def latent_shapes(self, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """Returns (h, w, Z) of each group for images of (height, width), from the coarsest to the finest."""
        return [
            (size[0] >> level, size[1] >> level, self.latent_channels)
            for level in reversed(range(len(self.channel_mult)))
            for _ in range(self.latent_groups[level])
        ]

    @nn.compact
    def __call__(
        self,
        x: jax.Array | None,
        noise: tuple[jax.Array, ...],
        text: jax.Array,
        text_mask: jax.Array,
        low_res: jax.Array | None = None,
        aug_level: jax.Array | None = None,
    ) -> HVAEOutput:
        """Encodes images and decodes them, or decodes noise.

        Args:
            x: images [B, H, W, C] in [-1, 1]; None to take all latents from the prior.
            noise: standard Gaussian noise of each group, [B, *shape] of `latent_shapes`: of its posterior, or of its
                prior. The `prior_noise` of an image's groups decodes to that image.
            text: text embeddings [B, L, D], zero where the text is dropped.
            text_mask: bool [B, L], True where there is a token.
            low_res: images [B, H, W, C] that condition a super-resolution stage, already resized to the size of x.
            aug_level: [B] in [0, 1], the augmentation level of `low_res`.
        """
        width = self.channels * self.cond_dim_mult
        embedding = VectorCondition(width, self.text_pool_heads, self.dtype, name="conditioning")(
            text, text_mask, aug_level
        )
        levels = len(self.channel_mult)
        encoded: list[Any] = [None] * levels
        if x is not None:
            images = x if low_res is None else jnp.concatenate([x, low_res], axis=-1)
            encoded = self._encode(images, embedding, self.num_res_blocks, "enc")
        conditions = None if low_res is None else self._encode(low_res, embedding, (1,) * levels, "cond")

        start = self.param("start", nn.initializers.normal(1.0), (self.channel_mult[-1] * self.channels,))
        # the coarsest level has a group: its noise has the size of the features
        h = jnp.broadcast_to(start.astype(self.dtype), (*noise[0].shape[:3], len(start)))
        groups: list[Group] = []
        for level in reversed(range(levels)):
            channels = self.channel_mult[level] * self.channels
            if level < levels - 1:
                h = self._res_block(channels, f"dec_{level}_double", "up")(h, embedding)
            if conditions is not None:
                h = h + conv(channels, f"dec_{level}_condition", self.dtype, size=1)(conditions[level])
            for index in range(self.latent_groups[level]):
                block = self._latent_block(channels, f"dec_{level}_group_{index}")
                h, group = block(h, encoded[level], embedding, noise[len(groups)])
                h = self._attention(level, f"dec_{level}_attend_{index}")(h, text, text_mask)
                groups.append(group)
        h = nn.swish(GroupNorm32(self.num_groups, name="out_norm")(h))
        # not zero at first, as in the U-Nets: components of a mixture that begin alike stay alike
        pixels = conv(self.out_channels, "out", self.dtype, size=1)(h)
        return HVAEOutput(pixels.astype(jnp.float32), tuple(groups))

    def _encode(
        self, images: jax.Array, embedding: jax.Array, num_blocks: tuple[int, ...], name: str
    ) -> list[jax.Array]:
        """Returns bottom-up features of images [B, H, W, C'] for each level, from the finest to the coarsest."""
        h = conv(self.channels, f"{name}_stem", self.dtype)(images.astype(self.dtype))
        features = []
        for level, multiplier in enumerate(self.channel_mult):
            channels = multiplier * self.channels
            if level:
                h = self._res_block(channels, f"{name}_{level}_halve", "down")(h, embedding)
            for index in range(num_blocks[level]):
                h = self._res_block(channels, f"{name}_{level}_res_{index}")(h, embedding)
            features.append(h)
        return features

    def _res_block(self, channels: int, name: str, resample: str = "") -> Any:
        return self._with_remat(ResBlock)(channels, self.num_groups, 0.0, self.dtype, resample, name=name)

    def _latent_block(self, channels: int, name: str) -> Any:
        scale = 1 / math.sqrt(sum(self.latent_groups))
        return self._with_remat(LatentBlock)(
            channels, self.latent_channels, self.num_groups, scale, self.dtype, name=name
        )

    def _attention(self, level: int, name: str) -> Any:
        kinds = self.attention_types[level]
        return self._with_remat(AttentionStack)(kinds, self.head_channels, self.num_groups, 0, self.dtype, name=name)

    def _with_remat(self, module: type[nn.Module]) -> Any:
        policy = REMAT_POLICIES[self.remat]
        return nn.remat(module, policy=policy) if policy else module
