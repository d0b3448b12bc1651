"""Print the table of docs/presets.md from the configs: `python -m benchmarks.presets`. Nothing is allocated."""

from __future__ import annotations

from configs import imagen_base_64, imagen_sr_256, imagen_sr_1024
from imagen_jax.config.load import load_config
from imagen_jax.config.schema import StageConfig
from imagen_jax.images.array import format_size, scale_size
from imagen_jax.planning.cost import stage_cost

T5_XXL_WIDTH = 4096  # d_model of google/t5-v1_1-xxl, the text encoder of the presets
PRESETS = (imagen_base_64, imagen_sr_256, imagen_sr_1024)
HEADER = (
    "| config | images | trained on | parameters | TFLOP per image |",
    "|---|---|---|---|---|",
)


def configs() -> dict[str, StageConfig]:
    """Returns all presets and their variants by their names for `--config`."""
    return {
        f"{preset.__name__.replace('.', '/')}.py{':' + variant if variant else ''}": load_config(
            preset.get_config(variant)
        )
        for preset in PRESETS
        for variant in preset.CHANNELS
    }


def _row(name: str, config: StageConfig) -> str:
    """Returns a preset's row of the table."""
    low, full, crop = config.low_res_hw, config.image_hw, config.data.crop_hw
    images = f"{format_size(low)} → {format_size(full)}" if any(low) else format_size(full)
    trained_on = (
        f"crops {format_size(scale_size(crop, full, low))} → {format_size(crop)}" if any(crop) else "full images"
    )
    total = stage_cost(config, T5_XXL_WIDTH)
    numbers = f"{total.num_params / 1e6:,.1f} M | {total.training_flops / 1e12:.3f}"
    return f"| `{name}` | {images} | {trained_on} | {numbers} |"


def format_table() -> str:
    """Returns the table of the presets' parameters and training FLOPs, as Markdown."""
    return "\n".join([*HEADER, *(_row(name, config) for name, config in configs().items())])


if __name__ == "__main__":
    print(format_table())
