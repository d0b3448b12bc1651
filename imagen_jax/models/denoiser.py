"""What both U-Nets share: the conditioning, the stem, and the way to an image again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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

Block = Callable[..., jax.Array]


def keeps_dots(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """Whether a result within a block is kept for the backward pass: of convolutions and dense layers alone.

    Norms and activations cost little to make again; so do the products of attention, beside the memory of its weights,
    which grows with the square of the pixels.
    """
    if primitive is jax.lax.dot_general_p:
        _, batch_axes = parameters["dimension_numbers"]
        return not any(batch_axes)
    return primitive is jax.lax.conv_general_dilated_p


# What residual blocks and attention layers keep for the backward pass beside their inputs; None: everything.
REMAT: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "dots": keeps_dots,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Denoiser(nn.Module):
    """A network that sees through the noise of images; its kinds differ in their ``trunk``.

    Attributes:
        image_channels: channels of the image that is denoised.
        patch: side of the squares of pixels that the network sees as one pixel; 1 in the paper. Larger ones are cheap
            (arXiv:2301.11093, Section 3.3).
        positions: cosines an axis of the learned picture of places that is added to the stem; 0 in the paper: none.
            It ties the network to whole images: not for stages that are trained on crops.
        input_skip: whether the inputs are added to the output by learned gains; False in the paper.
        channels: channels of the first level.
        multipliers: channels of each level, as multiples of ``channels``; a level is half the size of the one before.
        blocks: residual blocks of each level; see the kinds.
        attention: for each level its attention layers, a tuple of "self", "self+text", "text"; see the kinds.
        head_channels: channels of an attention head.
        attention_mlp: hidden width of a feed-forward layer after each attention, in multiples of its channels; 0: none.
        embedding_multiplier: width of the conditioning vector, as a multiple of ``channels``.
        text_heads: heads of the attention pooling of the text.
        norm_groups: groups of each GroupNorm.
        skip_scale: factor on each skip before it is concatenated.
        dropout: share of activations dropped in training.
        dtype: of the compute; parameters, norms and softmax stay float32.
        out_channels: channels of the output; inputs skip to the first ``image_channels`` of them.
        remat: of ``REMAT``, what is computed again in the backward pass instead of kept: time for memory.
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
    out_channels: int
    remat: str

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
    ) -> jax.Array:
        """The network's prediction.

        Args:
            z: [B, H, W, C] noisy images; H and W divisible by the patch, and then by 2 at every change of level.
            noise_level: [B] in [0, 1].
            text: [B, L, D] embeddings, zero where the caption is dropped.
            text_mask: [B, L] True where there is a token.
            low_res: [B, H, W, C] the condition of a super-resolution stage, already of z's size.
            aug_level: [B] in [0, 1], the noise in ``low_res``.
            dropout_keys: [B] keys of the dropout of each example; None for none, as outside of training.

        Returns:
            [B, H, W, out_channels] float32; zero at initialisation.
        """
        width = self.channels * self.embedding_multiplier
        embedding = Conditioning(width, self.text_heads, self.dtype, name="conditioning")(
            noise_level, text, text_mask, aug_level
        )
        images = z if low_res is None else jnp.concatenate([z, low_res], axis=-1)
        x = conv(self.channels, "stem", self.dtype)(to_patches(images.astype(self.dtype), self.patch))
        if self.positions:
            x = Positions(self.positions, self.dtype, name="positions")(x)

        def res(x: jax.Array, channels: int, name: str, resample: str = "") -> jax.Array:
            kind = self.with_remat(ResBlock)
            block = kind(channels, self.norm_groups, self.dropout, self.dtype, resample, name=name)
            return block(x, embedding, dropout_keys)

        def attend(x: jax.Array, kinds: tuple[str, ...], name: str) -> jax.Array:
            kind = self.with_remat(AttentionStack)
            stack = kind(kinds, self.head_channels, self.norm_groups, self.attention_mlp, self.dtype, name=name)
            return stack(x, text, text_mask)

        x = self.trunk(x, res, attend)

        x = ModulatedNorm(self.norm_groups, self.dtype, name="out_norm")(x, embedding)
        x = nn.swish(x)
        x = conv(self.patch**2 * self.out_channels, "out", self.dtype, zero=True)(x)
        x = from_patches(x, self.patch).astype(jnp.float32)
        if not self.input_skip:
            return x
        image, rest = jnp.split(x, [self.image_channels], axis=-1)
        return jnp.concatenate([InputSkip(name="input_skip")(image, images, embedding), rest], axis=-1)

    def with_remat(self, kind: type[nn.Module]) -> Any:
        """The kind of module whose backward pass remakes what ``remat`` does not keep; its parameters are the same."""
        policy = REMAT[self.remat]
        return nn.remat(kind, policy=policy) if policy else kind

    def trunk(self, x: jax.Array, res: Block, attend: Block) -> jax.Array:
        """Features of the stem [B, H/patch, W/patch, channels] → features of that height and width.

        Args:
            x: the features.
            res: ``(x, channels, name, resample="")``, a residual block that sees the conditioning.
            attend: ``(x, kinds, name)``, attention layers that see the text.
        """
        raise NotImplementedError
