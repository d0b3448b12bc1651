"""Convert DeepFloyd IF: `imagen convert --from=DeepFloyd/IF-I-M-v1.0,DeepFloyd/IF-II-L-v1.0 --variant=fp16 --out=DIR`.

Reads pipelines in the format of diffusers, here or on the Hugging Face Hub, and writes a cascade that `--stages` of
every command takes, as `imagen publish` does. `imagen convert --stages=DIR --to=diffusers --out=OUT` writes the stages
of such a cascade, or stages trained from it, as `OUT/stage_0`, … for diffusers' IFPipeline and
IFSuperResolutionPipeline. Neither needs diffusers or torch, and neither holds more than some tensors in memory.

`imagen convert --stages=RUN,RUN --to=lora --out=OUT` writes what runs with `adapter.kind="lora"` have trained as
safetensors files, which `--lora` of other commands and diffusers take, and `--to=embedding` the words of
`adapter.token`, for `--embedding`. `imagen convert --stages=DIR --lora=OUT --merge --out=MERGED` adds adapters to the
weights of a cascade, and publishes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

from imagen_jax.cli.flags import (
    CommandFlags,
    define_lora,
    define_path,
    define_stages,
    define_weights,
    load_adapters,
    weights_choices,
)
from imagen_jax.errors import ConfigError

if TYPE_CHECKING:
    from imagen_jax.stages.weights import WeightsChoice

_FORMATS = ("diffusers", "lora", "embedding")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    define_path(
        values,
        "from",
        None,
        "Pipelines in the format of diffusers, the first stage first, separated by commas: folders, or ORG/NAME or "
        "ORG/NAME@REVISION on the Hugging Face Hub.",
        separator=",",
    )
    define_stages(values)
    define_weights(values)
    define_lora(values)
    flags.DEFINE_boolean(
        "merge", False, "Publish the cascade with --lora, or the adapter of a run, in its weights.", flag_values=values
    )
    flags.DEFINE_enum("to", None, _FORMATS, "The format to write the stages of --stages in.", flag_values=values)
    define_path(values, "out", None, "The folder to write: a new one.")
    flags.DEFINE_string(
        "variant",
        "",
        "Variant of the weights, such as fp16, or none for those whose names have no variant; with --to, that to write "
        "in the place of the pipeline's own.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "dtype",
        "bfloat16",
        ["bfloat16", "float32"],
        "What the cascade and its text encoder compute in; weights are stored as float32.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "low_res_size",
        0,
        "Size in pixels of the images that a super-resolution stage enlarges which is converted alone; a fourth of its "
        "own by default.",
        lower_bound=0,
        flag_values=values,
    )
    define_path(
        values,
        "null_text",
        "",
        "File of the embedding that replaces the text in guidance and for dropped captions, instead of T5's of the "
        "empty caption: .npy, or .safetensors with one tensor.",
    )
    flags.DEFINE_boolean(
        "no_safety_checker",
        False,
        "Leave out the safety checker that the pipelines have; the cascade says so then.",
        flag_values=values,
    )
    flags.DEFINE_boolean("overwrite", False, "Replace what this command has written to OUT.", flag_values=values)


def run(args: CommandFlags) -> None:
    """Converts."""
    names = [name for name in (args["from"] or "").split(",") if name]
    if bool(names) == bool(args.stages):
        raise ConfigError(
            "give either --from, pipelines of diffusers to read, or --stages and --to=diffusers, lora or embedding, "
            "stages to write so, or --stages and --merge"
        )
    if not names and (args.low_res_size or args.null_text or args.no_safety_checker):
        raise ConfigError(
            "--low_res_size, --null_text and --no_safety_checker are for --from: leave them out with --stages"
        )
    if names:
        _convert(args, names)
    elif args.merge:
        _merge(args)
    elif args.to in ("lora", "embedding"):
        _to_lora(args)
    else:
        _to_diffusers(args)


def _convert(args: CommandFlags, names: list[str]) -> None:
    from imagen_jax.conversion.from_diffusers import ConvertSettings, convert

    if args.to or args.step or args.weights or args.lora or args.embedding or args.merge:
        raise ConfigError(
            "--to, --step, --weights, --lora, --embedding and --merge are for --stages: leave them out with --from"
        )
    settings = ConvertSettings(
        variant=args.variant,
        dtype=args.dtype,
        overwrite=args.overwrite,
        low_res_size=args.low_res_size,
        null_text=args.null_text,
        safety_checker=not args.no_safety_checker,
    )
    print(convert(names, args.required("out", "runs/if"), settings).summary())


def _to_diffusers(args: CommandFlags) -> None:
    from imagen_jax.conversion.to_diffusers import to_diffusers

    args.required("to", "diffusers")
    if args.lora or args.embedding:
        raise ConfigError("--lora and --embedding are for --merge: publish the merged cascade, and convert that")
    out = args.required("out", "runs/if_diffusers")
    print(to_diffusers(args.stage_names(), out, args.variant, args.overwrite, _weights(args)).summary())


def _to_lora(args: CommandFlags) -> None:
    from imagen_jax.training.to_lora import to_lora

    if args.lora or args.embedding or args.variant:
        raise ConfigError(
            f"--lora, --embedding and --variant are not for --to={args.to}, which writes what runs have trained"
        )
    out = args.required("out", f"runs/{args.to}")
    print(to_lora(args.stage_names(), out, args.overwrite, _weights(args), args.to).summary())


def _merge(args: CommandFlags) -> None:
    from imagen_jax.pipelines.imagen import ImagenPipeline
    from imagen_jax.publishing.publish import PublishSettings, publish

    if args.to or args.variant:
        raise ConfigError("--to and --variant are not for --merge, which publishes: convert the merged cascade then")
    choices = weights_choices(args, len(args.stage_folders(weights=False)))
    pipeline = load_adapters(args, ImagenPipeline.from_pretrained(args.stage_names(), weights=choices))
    print(publish(pipeline, args.required("out", "runs/merged"), PublishSettings(overwrite=args.overwrite)).summary())


def _weights(args: CommandFlags) -> list[WeightsChoice]:
    from imagen_jax.stages.weights import WeightsChoice

    choices = weights_choices(args, len(args.stage_folders(weights=False)))
    return [WeightsChoice.from_mapping(choice) for choice in choices]
