"""The U-Net for the base stage, with BigGAN residual blocks as in ADM (arXiv:2105.05233; arXiv:2205.11487, F.1)."""

from __future__ import annotations

import jax

from imagen_jax.models.unet_base import BlockContext, UNetBase


class UNet(UNetBase):
    """A U-Net with a skip connection from every block of the down path to a block of the up path.

    Attributes: see `UNetBase`. `num_res_blocks` counts the residual blocks of each level of the down path; each level
    of the up path has one more. `attention_types` are applied after each block of a level.
        middle_attention_types: attention layers of the middle blocks, at the resolution of the last level.
    """

    middle_attention_types: tuple[str, ...]

    def backbone(self, x: jax.Array, context: BlockContext) -> jax.Array:
        """See `UNetBase`."""
        skips = [x]
        levels = list(enumerate(zip(self.channel_mult, self.num_res_blocks, self.attention_types, strict=True)))
        last = len(levels) - 1

        for index, (multiplier, blocks, kinds) in levels:
            x, outputs = self._level_blocks(x, context, blocks, multiplier * self.channels, kinds, f"down_{index}")
            skips.extend(outputs)
            if index < last:
                x = self._res_block(x, context, x.shape[-1], f"down_{index}_halve", resample="down")
                skips.append(x)

        x = self._res_block(x, context, x.shape[-1], "middle_res_0")
        x = self._attention(x, context, self.middle_attention_types, "middle_attend")
        x = self._res_block(x, context, x.shape[-1], "middle_res_1")

        for index, (multiplier, blocks, kinds) in reversed(levels):
            level_skips = [skips.pop() * self.skip_scale for _ in range(blocks + 1)]
            x, _ = self._level_blocks(
                x, context, blocks + 1, multiplier * self.channels, kinds, f"up_{index}", level_skips
            )
            if index > 0:
                x = self._res_block(x, context, x.shape[-1], f"up_{index}_double", resample="up")
        return x
