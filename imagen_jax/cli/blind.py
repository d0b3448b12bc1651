"""Compare two models blindly: `imagen blind --a=runs/a --b=runs/b --out=runs/blind`.

Writes a page, `OUT/index.html`, that works without a server: people see the images of both models for each prompt side
by side, answer two questions by keys, and export their votes. `--a` and `--b` are folders of `imagen
benchmark_prompts`, of any program that writes GenEval's layout, or of `imagen sample`, with the same prompts.

Raters get the folder OUT. Which side is which model is in the key alone, `OUT.key.json` by default, which
`imagen votes` needs.
"""

from __future__ import annotations

import secrets

from absl import flags

from imagen_jax.cli.flags import CommandFlags, define_path, read_size


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    define_path(values, "a", None, "Images of one model.")
    define_path(values, "b", None, "Images of the other one.")
    define_path(values, "out", None, "The folder to write to, for raters.")
    define_path(values, "key", None, "The file for the key, outside of OUT; OUT.key.json by default.")
    flags.DEFINE_integer(
        "seed", None, "Of sides and order; at random by default. The key has it.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_integer("images", 4, "Images of each side, at most.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("limit", 0, "Pairs, chosen at random; 0 for all.", lower_bound=0, flag_values=values)
    flags.DEFINE_string(
        "size",
        None,
        "HEIGHTxWIDTH to resize all images to, where models have images of other sizes.",
        flag_values=values,
    )
    flags.DEFINE_boolean("overwrite", False, "Replace a page in OUT, and its key.", flag_values=values)


def run(args: CommandFlags) -> None:
    """Writes the page and its key."""
    from imagen_jax.evaluation.blind.page import BlindSettings, write_page
    from imagen_jax.io.paths import as_path

    a, b = as_path(args.required("a", "runs/a")), as_path(args.required("b", "runs/b"))
    out = args.output_folder("runs/blind")
    key = as_path(args.key) if args.key else out.with_name(f"{out.name}.key.json")
    seed = secrets.randbits(63) if args.seed is None else args.seed
    size = None if args.size is None else read_size(args.size, "--size")
    settings = BlindSettings(seed, args.images, size, args.limit)
    written = write_page(a, b, out, key, settings, args.overwrite)
    print(f"{written.pairs} pairs: {written.page}")
    print(f"give raters the folder {out}, and keep the key to yourself: {written.key}")
