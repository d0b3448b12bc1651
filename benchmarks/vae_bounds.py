"""Measure bounds of trained VAEs on held-out images: `python -m benchmarks.vae_bounds --stages=runs/fashion_vae`.

The table of docs/vae.md, a row for each run: the ELBO of the first images of the validation split, the
importance-weighted bound of fewer of them, both in bits per dimension, and which groups of latents are used. Images
that are enlarged by a border have more dimensions than the original ones, and nearly no more bits: `--dims` gives the
bits per dimension of images with so many values.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from benchmarks import app
from imagen_jax.cli.flags import CommandFlags, define_path
from imagen_jax.data.dataset import first_examples
from imagen_jax.datasets.from_config import make_examples
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.vae_validation import ACTIVE_GROUPS, ACTIVE_UNITS, BOUND, GROUP_PREFIX, IWAE
from imagen_jax.evaluation.validation import make_validation
from imagen_jax.io.paths import as_path
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.planning.programs import count_params
from imagen_jax.stages.stage import build


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    flags.DEFINE_list("stages", None, "The runs of VAEs, separated by commas.", flag_values=values)
    define_path(values, "data_path", "", "Where their data are, if not where they were in training.")
    flags.DEFINE_integer("images", 10_000, "Images for the ELBO.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("iwae_images", 1_000, "Images for the other bound.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("iwae_samples", 16, "Its samples.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("batch_size", 64, "Images at once.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("dims", 0, "Values of an image without its border; 0 for no such column.", flag_values=values)


def run(args: CommandFlags) -> None:
    """Prints the table."""
    dims = f"bits/dim of {args.dims:,} | " if args.dims else ""
    header = (
        f"| run | parameters | images trained on | bits/dim | {dims}IWAE, {args.iwae_samples} samples | active groups "
        "| active units | bits/dim of groups, coarse to fine |"
    )
    print(header, "|---" * (header.count("|") - 1) + "|", sep="\n", flush=True)
    for name in args.stages:
        print(_row(as_path(name), args), flush=True)


def _row(folder: Path, args: CommandFlags) -> str:
    pipeline = ImagenPipeline.from_pretrained(folder)
    (trained,) = pipeline.stages
    config = trained.stage.config
    if not config.is_vae:
        raise ConfigError(f"--stages {str(folder)!r} is a diffusion model: give runs of VAEs")
    data = config.with_changes({"data.path": args.data_path}).data if args.data_path else config.data
    images, captions = first_examples(
        make_examples(data, data.validation_split, config.image_hw, config.channels), args.images
    )
    text = pipeline.encode_prompt(captions)

    def measure(count: int, samples: int) -> dict[str, float]:
        stage = build(config.with_changes({"vae.importance_samples": samples}), trained.stage.text_width)
        validate = make_validation(stage, pipeline.mesh, args.batch_size)
        return validate(trained.params, images[:count], type(text)(*(array[:count] for array in text)))

    bound, weighted = measure(args.images, 1), measure(args.iwae_images, args.iwae_samples)
    groups = [value for name, value in sorted(bound.items()) if name.startswith(GROUP_PREFIX)]
    cells = [
        folder.name,
        f"{count_params(trained.params):,}",
        f"{trained.step * config.training.batch_size:,}",
        f"{bound[BOUND]:.3f}",
        *([f"{bound[BOUND] * images[0].size / args.dims:.3f}"] if args.dims else []),
        f"{weighted[IWAE]:.3f}",
        f"{bound[ACTIVE_GROUPS]:.0f} of {len(groups)}",
        f"{bound[ACTIVE_UNITS]:.1%}",
        ", ".join(f"{value:.4f}" for value in groups),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    app.main(__name__)
