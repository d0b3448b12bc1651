"""The U-Net of the base stage, of BigGAN-style residual blocks as in ADM (arXiv:2105.05233; arXiv:2205.11487, F.1)."""

from __future__ import annotations

import jax

from imagen_jax.models.unet_base import Denoiser, Given


class UNet(Denoiser):
    """A U-Net with a skip from every block of the way down to a block of the way up.

    Attributes: as of ``Denoiser``; ``blocks`` are those of each level on the way down, and there is one more on the way
    up; ``attention`` stands after each of its level's blocks.
        middle_attention: the attention layers of the middle, at the last level's size.
    """

    middle_attention: tuple[str, ...]

    def trunk(self, x: jax.Array, given: Given) -> jax.Array:
        """See ``Denoiser``."""
        skips = [x]
        levels = list(enumerate(zip(self.multipliers, self.blocks, self.attention, strict=True)))
        last = len(levels) - 1

        for index, (multiplier, blocks, kinds) in levels:
            x, made = self.level(x, given, blocks, multiplier * self.channels, kinds, f"down_{index}")
            skips.extend(made)
            if index < last:
                x = self.res(x, given, x.shape[-1], f"down_{index}_halve", resample="down")
                skips.append(x)

        x = self.res(x, given, x.shape[-1], "middle_res_0")
        x = self.attend(x, given, self.middle_attention, "middle_attend")
        x = self.res(x, given, x.shape[-1], "middle_res_1")

        for index, (multiplier, blocks, kinds) in reversed(levels):
            joined = [skips.pop() * self.skip_scale for _ in range(blocks + 1)]
            x, _ = self.level(x, given, blocks + 1, multiplier * self.channels, kinds, f"up_{index}", joined)
            if index > 0:
                x = self.res(x, given, x.shape[-1], f"up_{index}_double", resample="up")
        return x
