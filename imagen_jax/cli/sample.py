"""Generate images: `imagen sample --stages=DIR,DIR --prompts='a red circle; two blue squares' --out=DIR`.

Writes `OUT/images/NNNN.png`, an image for each prompt, batch by batch; `OUT/samples.png`, a grid of the first ones with
their prompts; and `OUT/samples.json`, the prompts and settings. Run again with the same prompts, seed and settings
after a break, it continues: complete images are kept. The same seed, prompt and position in the list give the same
image, at any batch size and on any mesh.

Each image carries what made it: `--like=IMAGE.png --stages=DIR,DIR --out=DIR` samples it again, to the bit, and other
flags change what they name, such as `--seed` or `--num_inference_steps`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from absl import flags

from imagen_jax.cli.flags import (
    CommandFlags,
    define_images,
    define_path,
    define_pipeline,
    define_safety_checker,
    define_text_cache,
    load_pipeline,
    prompt_guidance,
    safety_checker_choice,
    stage_changes,
    weights_choices,
)
from imagen_jax.errors import ConfigError
from imagen_jax.io.paths import as_path
from imagen_jax.io.text import printable

if TYPE_CHECKING:
    from imagen_jax.pipelines.imagen import ImagenPipeline
    from imagen_jax.pipelines.request import SampleRequest

SEVERAL_PROCESSES = True
_ESCAPED_COMMENT = re.compile(r"^\\(\\*#)")  # one backslash less


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    define_pipeline(values)
    flags.DEFINE_string("prompts", None, "The prompts, separated by semicolons.", flag_values=values)
    define_path(
        values,
        "prompts_file",
        None,
        "A text file with a prompt on each line, instead of --prompts; # begins a comment.",
    )
    define_path(values, "like", None, "A PNG file of this command to sample again, to the bit.")
    flags.DEFINE_boolean(
        "other_model", False, "With --like: sample from other weights than those of the image.", flag_values=values
    )
    define_images(values, batch_size=64)
    flags.DEFINE_integer(
        "columns", 0, "Columns of the grid; 0 for about as many as rows.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_string(
        "negative_prompt",
        None,
        "What images should not show: one text for all prompts or, separated by semicolons, one for each.",
        flag_values=values,
    )
    define_text_cache(values)
    define_safety_checker(values)


def run(args: CommandFlags) -> None:
    """Samples the prompts into a folder."""
    from imagen_jax.pipelines.sample_to_folder import sample_to_folder

    if args.other_model and args.like is None:
        raise ConfigError("--other_model is for --like alone: give --like=IMAGE.png, or leave it out")
    pipeline, request = _from_flags(args) if args.like is None else _like(args)
    out = args.output_folder("runs/samples")
    result = sample_to_folder(pipeline, request, out, columns=args.columns, overwrite=args.overwrite)
    if result is not None:
        print(result.summary())


def _from_flags(args: CommandFlags) -> tuple[ImagenPipeline, SampleRequest]:
    """Returns the cascade and the request that the flags describe."""
    from imagen_jax.pipelines.request import SampleRequest
    from imagen_jax.pipelines.texts import make_texts

    prompts = read_prompts(args.prompts, args.prompts_file)
    folders = args.stage_folders(weights=False)
    scales = prompt_guidance(args, len(folders), len(prompts))
    changes = stage_changes(args, len(folders), with_guidance=scales is None)
    negative = None if args.negative_prompt is None else [text.strip() for text in args.negative_prompt.split(";")]
    texts = make_texts(prompts, negative)
    weights = weights_choices(args, len(folders))
    pipeline = load_pipeline(args, changes, weights, args.text_cache, safety_checker_choice(args))
    size = pipeline.as_size(args.height, args.width)
    return pipeline, SampleRequest(texts, args.seed, args.batch_size, scales, size)


def _like(args: CommandFlags) -> tuple[ImagenPipeline, SampleRequest]:
    """Returns the cascade and the request that sample the image of `--like` again, with what other flags change."""
    from imagen_jax.pipelines import image_record

    what = f"--like {printable(args.like)!r}"
    record = image_record.read_record(args.like)
    folders = args.stage_folders(weights=False)
    image_record.check_stage_count(record, len(folders), what)
    changes = [
        {**before, **change}
        for before, change in zip(record.sampling(), stage_changes(args, len(folders)), strict=True)
    ]
    is_chosen = args.other_model or args.step is not None or args.weights is not None
    weights = weights_choices(args, len(folders)) if is_chosen else record.weights(folders)
    pipeline = load_pipeline(args, changes, weights, args.text_cache, safety_checker_choice(args))
    if not args.other_model:
        image_record.check_same_model(record, pipeline.stages, what)
    image_record.warn_if_elsewhere(record, pipeline)
    size = pipeline.as_size(args.height, args.width)
    updates = _like_updates(args) | ({} if size is None else {"size": list(size)})
    alone = pipeline.padded_batch(1, args.batch_size) if args.is_given("batch_size") else None
    return pipeline, image_record.like_request(record.model_copy(update=updates), alone)


def _like_updates(args: CommandFlags) -> dict[str, Any]:
    """Returns what flags change in the record of an image."""
    updates: dict[str, Any] = {}
    if args.prompts is not None or args.prompts_file is not None:
        prompts = read_prompts(args.prompts, args.prompts_file)
        if len(prompts) > 1:
            raise ConfigError(f"--like samples one image, and there are {len(prompts)} prompts: give one, or none")
        updates["prompt"] = prompts[0]
    if args.negative_prompt is not None:
        updates["negative_prompt"] = args.negative_prompt.strip()
    if args.is_given("seed"):
        updates["seed"] = args.seed
    if args.guidance_scale is not None:
        updates["guidance"] = None
    return updates


def read_prompts(text: str | None, file: str | None) -> list[str]:
    """Returns the prompts of the flags; in a file, lines that begin with `#` are comments, and `\\#` is a `#`.

    Raises:
        ConfigError: there are no prompts, or the file cannot be read.
    """
    if file is not None:
        try:
            text = as_path(file).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--prompts_file {file!r} cannot be read as text: {error}") from error
        lines = [line.strip() for line in text.split("\n")]
        prompts = [_ESCAPED_COMMENT.sub(r"\1", line) for line in lines if line and not line.startswith("#")]
    else:
        prompts = [part.strip() for part in (text or "").split(";") if part.strip()]
    if not prompts:
        raise ConfigError("there are no prompts: give for example --prompts='a red circle; two blue squares'")
    return prompts
