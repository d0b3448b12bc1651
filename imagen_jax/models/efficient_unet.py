"""The Efficient U-Net for super-resolution (arXiv:2205.11487, Section 2.3 and App. B, Fig. A.27–A.30)."""

from __future__ import annotations

import jax

from imagen_jax.models.layers import conv, upsample_conv
from imagen_jax.models.unet_base import BlockContext, UNetBase, concat_skip


class EfficientUNet(UNetBase):
    """A U-Net that spends most of its compute at low resolution.

    A down block downsamples before its residual blocks and an up block upsamples after them, so that level l runs at
    1/2^(l+1) of the resolution. The input of each down block is scaled and concatenated to the output of its up block.

    Attributes: see `UNetBase`. `num_res_blocks` counts the residual blocks of each level of the down path; the up path
    has as many. `attention_types` are applied once per level, after its residual blocks. There are no middle blocks
    besides the last level.
    """

    def backbone(self, x: jax.Array, context: BlockContext) -> jax.Array:
        """See `UNetBase`."""
        skips = []
        levels = list(enumerate(zip(self.channel_mult, self.num_res_blocks, self.attention_types, strict=True)))

        for index, (multiplier, blocks, kinds) in levels:
            skips.append(x)
            x = conv(multiplier * self.channels, f"down_{index}_halve", self.dtype, stride=2)(x)
            x, _ = self._level_blocks(x, context, blocks, multiplier * self.channels, (), f"down_{index}")
            x = self._attention(x, context, kinds, f"down_{index}_attend")

        for index, (multiplier, blocks, kinds) in reversed(levels):
            x, _ = self._level_blocks(x, context, blocks, multiplier * self.channels, (), f"up_{index}")
            x = self._attention(x, context, kinds, f"up_{index}_attend")
            finer_multiplier = self.channel_mult[index - 1] if index > 0 else 1
            x = upsample_conv(finer_multiplier * self.channels, f"up_{index}_double", self.dtype)(x)
            x = concat_skip(x, skips.pop() * self.skip_scale)
        return x
