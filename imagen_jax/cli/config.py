"""Print a config: `imagen config --config=configs/shapes_base.py [--config.key=value …] [--diff=OTHER]`.

Prints every key with its value; values that differ from the defaults are marked. `--diff=OTHER` prints the keys that
differ between the two configs. `--reference` prints the reference of all keys as Markdown.
"""

from __future__ import annotations

from absl import flags

from imagen_jax.cli.flags import CommandFlags, define_config, define_path
from imagen_jax.config.document import describe, diff, reference_markdown
from imagen_jax.config.load import load_config, schema_of


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    define_config(values, "The config to print.")
    define_path(values, "diff", None, "Another config file, whose differences to print.")
    flags.DEFINE_boolean("reference", False, "Print the reference of all keys as Markdown.", flag_values=values)


def run(args: CommandFlags) -> None:
    """Prints the config."""
    if args.reference:
        print(reference_markdown(), end="")
        return
    schema = schema_of(args.required("config", "configs/shapes_base.py"))
    config = args.load_config(schema)
    print(diff(config, load_config(args.diff, schema=schema)) if args.diff else describe(config))
