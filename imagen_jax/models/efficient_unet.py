"""The Efficient U-Net of the super-resolution stages (arXiv:2205.11487, Section 2.3 and App. B, Fig. A.27–A.30)."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.models.layers import (
    AttentionStack,
    Conditioning,
    InputSkip,
    ModulatedNorm,
    Positions,
    ResBlock,
    conv,
    from_patches,
    to_patches,
    upsample,
)


class EfficientUNet(nn.Module):
    """A U-Net that does its work at low resolution.

    A down block halves the image before its residual blocks, an up block doubles it after them, so level l works at
    1/2^(l+1) of the size; the input of each down block is joined, scaled, to the output of its up block.

    Attributes: as of ``UNet``; ``attention`` stands once, after the residual blocks of its level, and there is no
    middle: the last level is it.
    """

    image_channels: int
    patch: int
    positions: int
    input_skip: bool
    channels: int
    multipliers: tuple[int, ...]
    blocks: tuple[int, ...]
    attention: tuple[tuple[str, ...], ...]
    head_channels: int
    attention_mlp: int
    embedding_multiplier: int
    text_heads: int
    norm_groups: int
    skip_scale: float
    dropout: float
    dtype: jnp.dtype
    out_channels: int = 0

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        noise_level: jax.Array,
        text: jax.Array,
        text_mask: jax.Array,
        low_res: jax.Array | None = None,
        aug_level: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """The network's prediction; arguments and result as of ``UNet``."""
        res = partial(ResBlock, groups=self.norm_groups, dropout=self.dropout, dtype=self.dtype)
        attend = partial(
            AttentionStack,
            head_channels=self.head_channels,
            groups=self.norm_groups,
            mlp=self.attention_mlp,
            dtype=self.dtype,
        )
        width = self.channels * self.embedding_multiplier
        embedding = Conditioning(width, self.text_heads, self.dtype, name="conditioning")(
            noise_level, text, text_mask, aug_level
        )
        images = z if low_res is None else jnp.concatenate([z, low_res], axis=-1)
        x = conv(self.channels, "stem", self.dtype)(to_patches(images.astype(self.dtype), self.patch))
        if self.positions:
            x = Positions(self.positions, self.dtype, name="positions")(x)
        skips = []

        for level, (multiplier, blocks) in enumerate(zip(self.multipliers, self.blocks, strict=True)):
            skips.append(x)
            x = conv(multiplier * self.channels, f"down_{level}_halve", self.dtype, stride=2)(x)
            for block in range(blocks):
                x = res(multiplier * self.channels, name=f"down_{level}_res_{block}")(x, embedding, train)
            x = attend(self.attention[level], name=f"down_{level}_attend")(x, text, text_mask)

        for level, (multiplier, blocks) in reversed(list(enumerate(zip(self.multipliers, self.blocks, strict=True)))):
            for block in range(blocks):
                x = res(multiplier * self.channels, name=f"up_{level}_res_{block}")(x, embedding, train)
            x = attend(self.attention[level], name=f"up_{level}_attend")(x, text, text_mask)
            finer = self.multipliers[level - 1] if level > 0 else 1
            x = conv(finer * self.channels, f"up_{level}_double", self.dtype)(upsample(x))
            x = jnp.concatenate([x, skips.pop() * self.skip_scale], axis=-1)

        x = ModulatedNorm(self.norm_groups, self.dtype, name="out_norm")(x, embedding)
        x = nn.swish(x)
        x = conv(self.patch**2 * (self.out_channels or self.image_channels), "out", self.dtype, zero=True)(x)
        x = from_patches(x, self.patch).astype(jnp.float32)
        if not self.input_skip:
            return x
        image, rest = jnp.split(x, [self.image_channels], axis=-1)
        return jnp.concatenate([InputSkip(name="input_skip")(image, images, embedding), rest], axis=-1)
