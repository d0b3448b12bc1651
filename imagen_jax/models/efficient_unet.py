"""The Efficient U-Net of the super-resolution stages (arXiv:2205.11487, Section 2.3 and App. B, Fig. A.27–A.30)."""

from __future__ import annotations

import jax

from imagen_jax.models.layers import conv, upsample
from imagen_jax.models.unet_base import Denoiser, Given, joined


class EfficientUNet(Denoiser):
    """A U-Net that does its work at low resolution.

    A down block halves the image before its residual blocks, an up block doubles it after them, so level l works at
    1/2^(l+1) of the size; the input of each down block is joined, scaled, to the output of its up block.

    Attributes: as of ``Denoiser``; ``blocks`` are those of each level on the way down and as many on the way up;
    ``attention`` stands once, after the residual blocks of its level, and there is no middle: the last level is it.
    """

    def trunk(self, x: jax.Array, given: Given) -> jax.Array:
        """See ``Denoiser``."""
        skips = []
        levels = list(enumerate(zip(self.multipliers, self.blocks, self.attention, strict=True)))

        for index, (multiplier, blocks, kinds) in levels:
            skips.append(x)
            x = conv(multiplier * self.channels, f"down_{index}_halve", self.dtype, stride=2)(x)
            x, _ = self.level(x, given, blocks, multiplier * self.channels, (), f"down_{index}")
            x = self.attend(x, given, kinds, f"down_{index}_attend")

        for index, (multiplier, blocks, kinds) in reversed(levels):
            x, _ = self.level(x, given, blocks, multiplier * self.channels, (), f"up_{index}")
            x = self.attend(x, given, kinds, f"up_{index}_attend")
            finer = self.multipliers[index - 1] if index > 0 else 1
            x = conv(finer * self.channels, f"up_{index}_double", self.dtype)(upsample(x))
            x = joined(x, skips.pop() * self.skip_scale)
        return x
