"""Write a data set that comes with the package: `imagen prepare --dataset=emoji/white --out=DIR`.

Writes `OUT/emoji/white/1.0.0`, a data set of TensorFlow Datasets in array_record files, without TensorFlow. A config
reads it with `data.source = "tfds"` and `data.path = "OUT/emoji/white"`. An existing one is left as it is.
"""

from __future__ import annotations

from absl import flags

from imagen_jax.cli.flags import CommandFlags, define_path
from imagen_jax.datasets.builders import DATASETS
from imagen_jax.errors import ConfigError
from imagen_jax.io.bucket import is_bucket


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    define_path(values, "out", None, "The folder to write to; data sets are folders in it.")
    define_path(values, "font", None, "For emoji: the file of Noto Color Emoji, by default where Debian has it.")
    flags.DEFINE_enum("dataset", None, DATASETS, "Which data set to prepare.", flag_values=values)


def run(args: CommandFlags) -> None:
    """Prepares the data set."""
    from imagen_jax.datasets.builders import prepare

    name = args.required("dataset", "emoji/white")
    if is_bucket(args.required("out", "runs/data")):
        raise ConfigError(f"--out {args.out!r} is in a bucket: give a folder on this machine, and copy it there then")
    prepared = prepare(name, args.output_folder("runs/data"), args.font)
    splits = ", ".join(f"{split} {count}" for split, count in prepared.examples.items())
    state = "is there already" if prepared.existed else "is prepared"
    print(f"{prepared.folder} {state}: {splits} examples. In a config: data.path = '{prepared.folder.parent}'")
