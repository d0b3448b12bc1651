"""Other image sizes than those of the configs: what each stage samples, and whether it can."""

from __future__ import annotations

from collections.abc import Sequence

from imagen_jax.config.schema import StageConfig
from imagen_jax.diffusion.tiling import check_tiles
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size, format_height_width, scale_size

_MAX_SIDE = 2**16  # beyond it a number is a typing error, and compiling for it may crash XLA


def base_size(configs: Sequence[StageConfig], size: Size | None) -> Size | None:
    """Returns (height, width) of the base's images for those of the last stage; None for those of the config."""
    return None if size is None else scale_size(size, configs[-1].image_hw, configs[0].image_hw)


def check_size(configs: Sequence[StageConfig], size: Size) -> None:
    """Checks that a cascade can sample images of a size.

    Raises:
        ConfigError: a side is longer than any memory holds, or a stage would have sides that are not whole pixels, or
            that its network cannot halve.
    """
    if max(size) > _MAX_SIDE:
        raise ConfigError(f"size {format_height_width(size)} cannot be sampled: give sides of up to {_MAX_SIDE} pixels")
    for config in configs:
        own, last = config.image_hw, configs[-1].image_hw
        multiple = config.side_multiple
        needed = [multiple * whole // side for whole, side in zip(last, own, strict=True)]
        scaled = [side * part / whole for side, part, whole in zip(size, own, last, strict=True)]
        if any(side < multiple or side % multiple for side in scaled):
            raise ConfigError(
                f"size {format_height_width(size)} cannot be sampled: the {format_height_width(own)} stage would have "
                f"{scaled[0]:g}×{scaled[1]:g}, not multiples of {multiple}: give a height that is a multiple of "
                f"{needed[0]} and a width that is one of {needed[1]}"
            )
        if any(config.sampling.tile_hw):
            check_tiles(scale_size(size, last, own), config.sampling.tile_hw, config.sampling.tile_overlap, multiple)
