"""Publish a cascade: `imagen publish --stages=DIR,DIR --license=apache-2.0 --out=DIR [--push=ORG/NAME]`.

Writes one folder with all that others need: `OUT/model_index.json`; for each stage its config and its EMA weights as
safetensors; the text encoder by name and fingerprint, or inside; `OUT/SHA256SUMS`; `OUT/samples.png`, a grid of
samples; and `OUT/README.md`, a model card with the header of the Hugging Face Hub, written from the configs and the
results of `imagen evaluate`. `ImagenPipeline.from_pretrained` and `--stages` of every command take such a folder.
Sampling settings that are given become those of the cascade.
"""

from __future__ import annotations

import re

from absl import flags

from imagen_jax.cli.flags import (
    CommandFlags,
    define_path,
    define_pipeline,
    load_pipeline,
)
from imagen_jax.errors import ConfigError
from imagen_jax.io.paths import as_path
from imagen_jax.io.text import printable

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}  # as the Hub counts


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    define_pipeline(values)
    define_path(values, "out", None, "The folder to write: a new one, also in a bucket.")
    flags.DEFINE_string("name", "", "Name of the cascade in its card; that of OUT by default.", flag_values=values)
    flags.DEFINE_string(
        "license",
        "",
        "License of the weights: its identifier on the Hub, such as apache-2.0, its name, or its address.",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "text_encoder",
        None,
        "Whether the files of the text encoder are inside; by default if they are in a folder of this machine.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "max_shard_size",
        "4GB",
        "Size of weights above which they are split into several parts, with an index.",
        flag_values=values,
    )
    define_path(
        values,
        "evaluation",
        None,
        "The OUT of `imagen evaluate` of these stages, or its scores.json; by default that beside the stage folders.",
    )
    flags.DEFINE_string(
        "prompts",
        None,
        "Prompts of the sample grid, separated by semicolons; captions of the data set by default.",
        flag_values=values,
    )
    flags.DEFINE_string("push", "", "ORG/NAME on the Hugging Face Hub to push the cascade to.", flag_values=values)
    flags.DEFINE_boolean("private", False, "With --push: create a private repository.", flag_values=values)
    flags.DEFINE_boolean(
        "overwrite", False, "Replace a published cascade in OUT, and on the Hub with --push.", flag_values=values
    )


def run(args: CommandFlags) -> None:
    """Publishes the cascade."""
    from imagen_jax.publishing.publish import PublishSettings, check_settings, publish
    from imagen_jax.stages.cascade_folder import check_out

    out = args.required("out", "runs/cascade")
    settings = PublishSettings(
        name=args.name,
        license=args.license,
        text_encoder=args.text_encoder,
        max_shard_size=_read_size(args.max_shard_size),
        evaluation=args.evaluation,
        prompts=[text.strip() for text in (args.prompts or "").split(";") if text.strip()],
        overwrite=args.overwrite,
        push=args.push,
        private=args.private,
    )
    check_settings(settings)
    check_out(as_path(out), settings.overwrite)
    print(publish(load_pipeline(args, safety_checker="cascade"), out, settings).summary())


def _read_size(text: str) -> int:
    """Returns the bytes of a size such as 4GB. Raises ConfigError."""
    match = re.fullmatch(r"(\d{1,15})(B|KB|MB|GB|TB)", text.strip().upper())
    if match is None:
        raise ConfigError(f"--max_shard_size {printable(text)!r} is not a size: give for example 4GB or 500MB")
    return int(match[1]) * _UNITS[match[2]]
