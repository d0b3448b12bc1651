"""Edit images: `imagen edit --task=inpaint --stages=shapes --image=IN.png --mask=MASK.png --prompts='…' --out=DIR`.

Tasks:
  image_to_image  draws images like IMAGE, from it with noise: --strength, 0 for none of it and 1 for noise alone
  inpaint         draws what is white in --mask anew: --strength, --resample, --feather
  outpaint        draws what is around IMAGE: --canvas=64x128, --position=TOPxLEFT
  variations      --count images like IMAGE: --strength
  upscale         enlarges IMAGE by the super-resolution stages alone
  interpolate     --count images from one end to the other: --ends='3;4' (seeds), 'a ring;a cross' (prompts) or files
  edit            changes what --prompts says otherwise than --source_prompt, and keeps the rest: --strength
  reconstruct     encodes IMAGE by a VAE at the base of the cascade, and decodes it
  invert          finds the noise of IMAGE, writes it to OUT/inversion.npz, and samples from it: the image comes back

Writes `OUT/images/NNNN.png`, an image for each prompt; `OUT/samples.png`, a grid of what was given and of them; and
`OUT/samples.json`, the edit and its settings. The same edit and seed give the same images at any batch size.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from imagen_jax.cli.flags import (
    CommandFlags,
    define_images,
    define_path,
    define_pipeline,
    define_safety_checker,
    define_text_cache,
    load_pipeline,
    read_size,
    safety_checker_choice,
    stage_changes,
)
from imagen_jax.cli.sample import read_prompts
from imagen_jax.errors import ConfigError, unknown_name_error
from imagen_jax.io.paths import as_path

if TYPE_CHECKING:
    from PIL.Image import Image

    from imagen_jax.pipelines.editor import ImagenEditor
    from imagen_jax.pipelines.imagen import ImagenPipelineOutput

TASKS = (
    "image_to_image",
    "inpaint",
    "outpaint",
    "variations",
    "upscale",
    "interpolate",
    "edit",
    "reconstruct",
    "invert",
)
# the flags of each task, besides those of all; True for those that it cannot do without
_TASK_FLAGS = {
    "image_to_image": {"image": True, "prompts": True, "strength": False},
    "inpaint": {"image": True, "mask": True, "prompts": True, "strength": False, "resample": False, "feather": False},
    "outpaint": {
        "image": True,
        "canvas": True,
        "prompts": True,
        "position": False,
        "resample": False,
        "feather": False,
    },
    "variations": {"image": True, "count": False, "strength": False, "prompts": False},
    "upscale": {"image": True, "prompts": True},
    "interpolate": {"ends": True, "count": False, "prompts": False},
    "edit": {"image": True, "source_prompt": True, "prompts": True, "strength": False},
    "reconstruct": {"image": True, "prompts": False},
    "invert": {"image": True, "prompts": True, "exact": False},
}
_EXAMPLES = {
    "image": "photo.png",
    "mask": "mask.png",
    "prompts": "'a red circle'",
    "source_prompt": "'a red circle'",
    "canvas": "64x128",
    "ends": "'a ring;a cross'",
}
_DEFAULT_COUNT = 4


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("task", None, f"What to do: {', '.join(TASKS)}.", flag_values=values)
    define_pipeline(values)
    define_path(values, "image", None, "The image: a PNG, JPEG, WebP, BMP or TIFF file.")
    define_path(values, "mask", None, "An image of the same size: what is white is drawn anew.")
    flags.DEFINE_string("prompts", None, "What the images show; several, separated by semicolons.", flag_values=values)
    define_path(values, "prompts_file", None, "A text file with a prompt on each line, instead of --prompts.")
    flags.DEFINE_string("source_prompt", None, "What the image shows, for --task=edit.", flag_values=values)
    flags.DEFINE_list("strength", None, "In [0, 1]; one for all stages, or one for each.", flag_values=values)
    flags.DEFINE_integer("resample", None, "How often each step is taken (RePaint); 1 by default.", flag_values=values)
    flags.DEFINE_integer("feather", None, "Pixels over which the new part is faded in.", flag_values=values)
    flags.DEFINE_string("canvas", None, "HEIGHTxWIDTH of the result of outpainting.", flag_values=values)
    flags.DEFINE_string("position", None, "TOPxLEFT of the image on it; in the middle by default.", flag_values=values)
    define_path(values, "ends", None, "Two seeds, prompts or image files, separated by a semicolon.", separator=";")
    flags.DEFINE_integer("count", None, f"Images; {_DEFAULT_COUNT} by default.", lower_bound=1, flag_values=values)
    flags.DEFINE_boolean("exact", None, "Whether to invert by bdia; by ddim otherwise.", flag_values=values)
    define_images(values, batch_size=16)
    flags.DEFINE_string("negative_prompt", None, "What images should not show.", flag_values=values)
    define_text_cache(values)
    define_safety_checker(values)


def run(args: CommandFlags) -> None:
    """Edits an image into a folder."""
    task = _check_flags(args)
    prompts = read_prompts(args.prompts, args.prompts_file) if args.prompts or args.prompts_file else None
    own = {name: args[name] for name in _TASK_FLAGS[task] if args[name] is not None}

    from imagen_jax.images.files import decode_image, read_bytes
    from imagen_jax.pipelines import edit_to_folder
    from imagen_jax.pipelines.editor import ImagenEditor
    from imagen_jax.pipelines.output_dir import flagged_lines

    files: dict[str, bytes] = {
        name: read_bytes(as_path(own[name]), f"--{name}") for name in ("image", "mask") if name in own
    }
    images = {name: decode_image(data, f"--{name} {own[name]!r}") for name, data in files.items()}
    ends, end_files = _read_ends(args.ends) if task == "interpolate" else ([], [])
    changes = stage_changes(args, len(args.stage_folders(weights=False)))
    # as arguments of the call: they stand above what a task sets by itself
    settings = {name: [change[name] for change in changes] for name in changes[0]}
    settings |= {name: args[name] for name in ("seed", "negative_prompt", "height", "width") if args[name] is not None}
    unchanged: list[dict[str, object]] = [{} for _ in changes]
    pipeline = load_pipeline(args, unchanged, None, args.text_cache, safety_checker_choice(args))
    out = args.output_folder("runs/edit")
    digests: dict[str, Any] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    if end_files:
        digests["ends"] = [hashlib.sha256(data).hexdigest() for data in end_files]
    # all but the batch size, which changes no image
    edit: dict[str, Any] = {"task": task, **own, **digests, "prompts": prompts, "settings": settings}
    edit_to_folder.prepare(out, pipeline, edit, args.overwrite)
    settings["batch_size"] = args.batch_size
    output = _edit(ImagenEditor(pipeline), task, args, images, ends, prompts, settings, out)
    result = output.images
    captions = [*(prompts or [])] if prompts and len(prompts) == len(result) else [task] * len(result)
    given = [(np.asarray(image.convert("RGB")), name) for name, image in images.items()]
    edit_to_folder.save(out, result, captions, given)
    print(f"{len(result)} images: {out / 'samples.png'} shows them, {out / 'images'} has each")
    flagged = [] if output.safety is None else np.flatnonzero(output.safety.flagged).tolist()
    for line in flagged_lines(flagged):
        print(line)


def _check_flags(args: CommandFlags) -> str:
    """Returns the task. Raises ConfigError for one that is not known, and flags that are missing or not of it."""
    task = args.required("task", "inpaint")
    if task not in TASKS:
        raise unknown_name_error("--task", task, TASKS)
    own = _TASK_FLAGS[task]
    for name, is_needed in own.items():
        is_given = args[name] is not None or (name == "prompts" and args.prompts_file is not None)
        if is_needed and not is_given:
            raise ConfigError(f"--{name} is missing for --task={task}: give for example --{name}={_EXAMPLES[name]}")
    for name in sorted({name for flags_of in _TASK_FLAGS.values() for name in flags_of} - own.keys()):
        if args[name] is not None:
            raise ConfigError(f"--{name} has no effect on --task={task}: leave it out")
    return task


def _edit(
    editor: ImagenEditor,
    task: str,
    args: CommandFlags,
    images: dict[str, Image],
    ends: list[Any],
    prompts: list[str] | None,
    settings: dict[str, Any],
    out: Path,
) -> ImagenPipelineOutput:
    """Returns the images of a task."""
    own: dict[str, Any] = {name: args[name] for name in ("resample", "feather", "exact") if args[name] is not None}
    if args.strength is not None:
        own["strength"] = _read_strength(args.strength)
    count = _DEFAULT_COUNT if args.count is None else args.count
    match task:
        case "image_to_image":
            return editor.image_to_image(images["image"], prompts or [], **own, **settings)
        case "inpaint":
            return editor.inpaint(images["image"], images["mask"], prompts or [], **own, **settings)
        case "outpaint":
            canvas, position = read_size(args.canvas, "--canvas"), None
            if args.position is not None:
                position = read_size(args.position, "--position")
            return editor.outpaint(images["image"], canvas, prompts or [], position, **own, **settings)
        case "variations":
            described: dict[str, Any] = {"prompt": prompts} if prompts else {}
            return editor.variations(images["image"], count, **own, **described, **settings)
        case "upscale":
            return editor.upscale(images["image"], prompts or [], **settings)
        case "edit":
            return editor.edit(images["image"], args.source_prompt, prompts or [], **own, **settings)
        case "reconstruct":
            return editor.reconstruct(images["image"], prompts or "", **settings)
        case "interpolate":
            first, second = ends
            return editor.interpolate(first, second, count, prompts[0] if prompts else None, **settings)
    inversion = editor.invert(images["image"], prompts or [], **own, **settings)
    inversion.save(out / "inversion.npz")
    return editor.from_inversion(inversion)


def _read_strength(parts: list[str]) -> list[float] | float:
    try:
        strengths = [float(part) for part in parts]
    except ValueError as error:
        raise ConfigError(f"--strength {','.join(parts)!r} is not a number in [0, 1], or one for each stage") from error
    return strengths if len(strengths) > 1 else strengths[0]


def _read_ends(text: str) -> tuple[list[Any], list[bytes]]:
    """Returns the ends of an interpolation: seeds if both are numbers, images if both are files, else prompts.

    Beside them, the bytes of the files.
    """
    from imagen_jax.images.files import decode_image, read_bytes
    from imagen_jax.images.formats import image_suffixes

    ends = [part.strip() for part in text.split(";")]
    if len(ends) != 2 or not all(ends):
        raise ConfigError(f"--ends {text!r} are not two: give for example --ends={_EXAMPLES['ends']}")
    if all(end.isdecimal() for end in ends):
        return [int(end) for end in ends], []
    if not any(end.lower().endswith(image_suffixes()) for end in ends):
        return ends, []
    files = [read_bytes(as_path(end), "--ends") for end in ends]
    return [decode_image(data, f"--ends {end!r}") for data, end in zip(files, ends, strict=True)], files
