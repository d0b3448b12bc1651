"""Generate images: `imagen sample --stages=DIR,DIR --prompts='a red circle; two blue squares' --out=DIR`.

Writes `OUT/images/NNNN.png`, an image for each prompt, batch by batch; `OUT/samples.png`, a grid of the first ones with
their prompts; and `OUT/samples.json`, the prompts and settings. Run again with the same prompts, seed and settings
after a break, it continues: complete images are kept. The same seed, prompt and position in the list give the same
image, at any batch size and on any mesh.
"""

from __future__ import annotations

from absl import flags

from imagen_jax.cli.flags import (
    CommandFlags,
    define_mesh,
    define_path,
    define_sampling,
    define_stages,
    define_text_cache,
    define_weights,
    mesh_axes,
    prompt_guidance,
    stage_changes,
    weights_choices,
)
from imagen_jax.diffusion.keys import MAX_SEED
from imagen_jax.errors import ConfigError
from imagen_jax.io.paths import as_path

SEVERAL_PROCESSES = True


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    define_stages(values)
    flags.DEFINE_string("prompts", None, "The prompts, separated by semicolons.", flag_values=values)
    define_path(values, "prompts_file", None, "A text file with a prompt on each line, instead of --prompts.")
    define_path(values, "out", None, "The folder to write to.")
    flags.DEFINE_integer(
        "seed",
        0,
        "In [0, 2^64); another seed gives other images.",
        lower_bound=0,
        upper_bound=MAX_SEED,
        flag_values=values,
    )
    flags.DEFINE_integer("batch_size", 64, "Images to sample at once.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "columns", 0, "Columns of the grid; 0 for about as many as rows.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_boolean("overwrite", False, "Remove images of another run from OUT.", flag_values=values)
    flags.DEFINE_string(
        "negative_prompt",
        None,
        "What images should not show: one text for all prompts or, separated by semicolons, one for each.",
        flag_values=values,
    )
    flags.DEFINE_integer("height", None, "Height of the images, in place of the config's.", flag_values=values)
    flags.DEFINE_integer("width", None, "Width of the images, in place of the config's.", flag_values=values)
    define_weights(values)
    define_text_cache(values)
    define_mesh(values)
    define_sampling(values)


def run(args: CommandFlags) -> None:
    """Samples the prompts into a folder."""
    from imagen_jax.pipelines.imagen import ImagenPipeline
    from imagen_jax.pipelines.request import SampleRequest
    from imagen_jax.pipelines.sample_to_folder import sample_to_folder
    from imagen_jax.pipelines.texts import make_texts

    prompts = read_prompts(args.prompts, args.prompts_file)
    folders = args.stage_folders()
    scales = prompt_guidance(args, len(folders), len(prompts))
    changes = stage_changes(args, len(folders), with_guidance=scales is None)
    negative = None if args.negative_prompt is None else [text.strip() for text in args.negative_prompt.split(";")]
    texts = make_texts(prompts, negative)
    pipeline = ImagenPipeline.from_pretrained(
        folders, mesh_axes(args), changes, text_cache=args.text_cache, weights=weights_choices(args, len(folders))
    )
    out = args.output_folder("runs/samples")
    request = SampleRequest(texts, args.seed, args.batch_size, scales, pipeline.as_size(args.height, args.width))
    result = sample_to_folder(pipeline, request, out, columns=args.columns, overwrite=args.overwrite)
    if result is not None:
        print(result.summary())


def read_prompts(text: str | None, file: str | None) -> list[str]:
    """Returns the prompts of the flags. Raises ConfigError if there are none, or the file cannot be read."""
    if file is not None:
        try:
            lines = as_path(file).read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--prompts_file {file!r} cannot be read as text: {error}") from error
    else:
        lines = (text or "").split(";")
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ConfigError("there are no prompts: give for example --prompts='a red circle; two blue squares'")
    return prompts
