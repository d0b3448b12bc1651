"""The Efficient U-Net of the super-resolution stages (arXiv:2205.11487, Section 2.3 and App. B, Fig. A.27–A.30)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from imagen_jax.models.denoiser import Block, Denoiser
from imagen_jax.models.layers import conv, upsample


class EfficientUNet(Denoiser):
    """A U-Net that does its work at low resolution.

    A down block halves the image before its residual blocks, an up block doubles it after them, so level l works at
    1/2^(l+1) of the size; the input of each down block is joined, scaled, to the output of its up block.

    Attributes: as of ``Denoiser``; ``blocks`` are those of each level on the way down and as many on the way up;
    ``attention`` stands once, after the residual blocks of its level, and there is no middle: the last level is it.
    """

    def trunk(self, x: jax.Array, res: Block, attend: Block) -> jax.Array:
        """See ``Denoiser``."""
        skips = []
        levels = list(enumerate(zip(self.multipliers, self.blocks, strict=True)))

        for level, (multiplier, blocks) in levels:
            skips.append(x)
            x = conv(multiplier * self.channels, f"down_{level}_halve", self.dtype, stride=2)(x)
            for block in range(blocks):
                x = res(x, multiplier * self.channels, f"down_{level}_res_{block}")
            x = attend(x, self.attention[level], f"down_{level}_attend")

        for level, (multiplier, blocks) in reversed(levels):
            for block in range(blocks):
                x = res(x, multiplier * self.channels, f"up_{level}_res_{block}")
            x = attend(x, self.attention[level], f"up_{level}_attend")
            finer = self.multipliers[level - 1] if level > 0 else 1
            x = conv(finer * self.channels, f"up_{level}_double", self.dtype)(upsample(x))
            x = jnp.concatenate([x, skips.pop() * self.skip_scale], axis=-1)
        return x
