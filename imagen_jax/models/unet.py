"""The U-Net of the base stage, of BigGAN-style residual blocks as in ADM (arXiv:2105.05233; arXiv:2205.11487, F.1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from imagen_jax.models.denoiser import Block, Denoiser


class UNet(Denoiser):
    """A U-Net with a skip from every block of the way down to a block of the way up.

    Attributes: as of ``Denoiser``; ``blocks`` are those of each level on the way down, and there is one more on the way
    up; ``attention`` stands after each of its level's blocks.
        middle_attention: the attention layers of the middle, at the last level's size.
    """

    middle_attention: tuple[str, ...]

    def trunk(self, x: jax.Array, res: Block, attend: Block) -> jax.Array:
        """See ``Denoiser``."""
        skips = [x]
        last = len(self.multipliers) - 1

        for level, (multiplier, blocks) in enumerate(zip(self.multipliers, self.blocks, strict=True)):
            for block in range(blocks):
                x = res(x, multiplier * self.channels, f"down_{level}_res_{block}")
                x = attend(x, self.attention[level], f"down_{level}_attend_{block}")
                skips.append(x)
            if level < last:
                x = res(x, x.shape[-1], f"down_{level}_halve", resample="down")
                skips.append(x)

        x = res(x, x.shape[-1], "middle_res_0")
        x = attend(x, self.middle_attention, "middle_attend")
        x = res(x, x.shape[-1], "middle_res_1")

        for level in reversed(range(last + 1)):
            for block in range(self.blocks[level] + 1):
                x = jnp.concatenate([x, skips.pop() * self.skip_scale], axis=-1)
                x = res(x, self.multipliers[level] * self.channels, f"up_{level}_res_{block}")
                x = attend(x, self.attention[level], f"up_{level}_attend_{block}")
            if level > 0:
                x = res(x, x.shape[-1], f"up_{level}_double", resample="up")
        return x
