"""The U-Net of the base stage, of BigGAN-style residual blocks as in ADM (arXiv:2105.05233; arXiv:2205.11487, F.1)."""

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
)


class UNet(nn.Module):
    """A U-Net with a skip from every block of the way down to a block of the way up.

    Attributes:
        image_channels: channels of the image that is denoised.
        patch: side of the squares of pixels that the network sees as one pixel; 1 in the paper. Larger ones are cheap
            (arXiv:2301.11093, Section 3.3).
        positions: cosines an axis of the learned picture of places that is added to the stem; 0 in the paper: none.
            It ties the network to whole images: not for stages that are trained on crops.
        input_skip: whether the inputs are added to the output by learned gains; False in the paper.
        channels: channels of the first level.
        multipliers: channels of each level, as multiples of ``channels``; a level is half the size of the one before.
        blocks: residual blocks of each level on the way down (one more on the way up).
        attention: for each level the attention layers after each of its blocks, a tuple of "self", "self+text", "text".
        middle_attention: the same for the middle, at the last level's size.
        head_channels: channels of an attention head.
        attention_mlp: hidden width of a feed-forward layer after each attention, in multiples of its channels; 0: none.
        embedding_multiplier: width of the conditioning vector, as a multiple of ``channels``.
        text_heads: heads of the attention pooling of the text.
        norm_groups: groups of each GroupNorm.
        skip_scale: factor on each skip before it is concatenated.
        dropout: share of activations dropped in training.
        dtype: of the compute; parameters, norms and softmax stay float32.
        out_channels: channels of the output, of which inputs skip to the first ``image_channels``; 0: as many as those.
    """

    image_channels: int
    patch: int
    positions: int
    input_skip: bool
    channels: int
    multipliers: tuple[int, ...]
    blocks: tuple[int, ...]
    attention: tuple[tuple[str, ...], ...]
    middle_attention: tuple[str, ...]
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
        """The network's prediction.

        Args:
            z: [B, H, W, C] noisy images; H and W divisible by the patch, and then by 2 at every change of level.
            noise_level: [B] in [0, 1].
            text: [B, L, D] embeddings, zero where the caption is dropped.
            text_mask: [B, L] True where there is a token.
            low_res: [B, H, W, C] the condition of a super-resolution stage, already of z's size.
            aug_level: [B] in [0, 1], the noise in ``low_res``.
            train: whether dropout is on (needs the ``dropout`` key).

        Returns:
            [B, H, W, out_channels] float32; zero at initialisation.
        """
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
        skips = [x]
        last = len(self.multipliers) - 1

        for level, (multiplier, blocks) in enumerate(zip(self.multipliers, self.blocks, strict=True)):
            for block in range(blocks):
                x = res(multiplier * self.channels, name=f"down_{level}_res_{block}")(x, embedding, train)
                x = attend(self.attention[level], name=f"down_{level}_attend_{block}")(x, text, text_mask)
                skips.append(x)
            if level < last:
                x = res(x.shape[-1], resample="down", name=f"down_{level}_halve")(x, embedding, train)
                skips.append(x)

        x = res(x.shape[-1], name="middle_res_0")(x, embedding, train)
        x = attend(self.middle_attention, name="middle_attend")(x, text, text_mask)
        x = res(x.shape[-1], name="middle_res_1")(x, embedding, train)

        for level in reversed(range(last + 1)):
            for block in range(self.blocks[level] + 1):
                x = jnp.concatenate([x, skips.pop() * self.skip_scale], axis=-1)
                x = res(self.multipliers[level] * self.channels, name=f"up_{level}_res_{block}")(x, embedding, train)
                x = attend(self.attention[level], name=f"up_{level}_attend_{block}")(x, text, text_mask)
            if level > 0:
                x = res(x.shape[-1], resample="up", name=f"up_{level}_double")(x, embedding, train)

        x = ModulatedNorm(self.norm_groups, self.dtype, name="out_norm")(x, embedding)
        x = nn.swish(x)
        x = conv(self.patch**2 * (self.out_channels or self.image_channels), "out", self.dtype, zero=True)(x)
        x = from_patches(x, self.patch).astype(jnp.float32)
        if not self.input_skip:
            return x
        image, rest = jnp.split(x, [self.image_channels], axis=-1)
        return jnp.concatenate([InputSkip(name="input_skip")(image, images, embedding), rest], axis=-1)
