"""Convert DeepFloyd IF: `imagen convert --from=DeepFloyd/IF-I-M-v1.0,DeepFloyd/IF-II-L-v1.0 --variant=fp16 --out=DIR`.

Reads pipelines in the format of diffusers, here or on the Hugging Face Hub, and writes a cascade that `--stages` of
every command takes, as `imagen publish` does. `imagen convert --stages=DIR --to=diffusers --out=OUT` writes the stages
of such a cascade, or stages trained from it, as `OUT/stage_0`, … for diffusers' IFPipeline and
IFSuperResolutionPipeline. Neither needs diffusers or torch, and neither holds more than some tensors in memory.
"""

from __future__ import annotations

from absl import flags

from imagen_jax.cli.flags import CommandFlags, define_path, define_stages, define_weights, weights_choices
from imagen_jax.errors import ConfigError

_FORMATS = ("diffusers",)


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
    flags.DEFINE_boolean("overwrite", False, "Replace what this command has written to OUT.", flag_values=values)


def run(args: CommandFlags) -> None:
    """Converts."""
    names = [name for name in (args["from"] or "").split(",") if name]
    if bool(names) == bool(args.stages):
        raise ConfigError(
            "give either --from, pipelines of diffusers to read, or --stages and --to=diffusers, stages to write so"
        )
    if names:
        _convert(args, names)
    else:
        _to_diffusers(args)


def _convert(args: CommandFlags, names: list[str]) -> None:
    from imagen_jax.conversion.from_diffusers import ConvertSettings, convert

    if args.to or args.step or args.weights:
        raise ConfigError("--to, --step and --weights are for --stages: leave them out with --from")
    settings = ConvertSettings(variant=args.variant, dtype=args.dtype, overwrite=args.overwrite)
    print(convert(names, args.required("out", "runs/if"), settings).summary())


def _to_diffusers(args: CommandFlags) -> None:
    from imagen_jax.conversion.to_diffusers import to_diffusers
    from imagen_jax.stages.weights import WeightsChoice

    args.required("to", "diffusers")
    out = args.required("out", "runs/if_diffusers")
    choices = weights_choices(args, len(args.stage_folders(weights=False)))
    weights = [WeightsChoice.from_mapping(choice) for choice in choices]
    print(to_diffusers(args.stage_names(), out, args.variant, args.overwrite, weights).summary())
