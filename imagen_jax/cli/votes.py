"""Count the votes of a page of `imagen blind`: `imagen votes --key=runs/blind.key.json ANN.json BEN.json`.

Prints for both questions, by category and in all, how often each model was preferred, with 95% intervals, how often the
left side was, and how far raters agree (Krippendorff's alpha). `--out=FILE` writes the same as JSON.
"""

from __future__ import annotations

from absl import flags

from imagen_jax.cli.flags import CommandFlags, define_path

TAKES_FILES = True


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    define_path(values, "key", None, "The key that imagen blind has written.")
    define_path(values, "out", None, "A JSON file to write the result to.")


def run(args: CommandFlags) -> None:
    """Counts the votes, and prints the result."""
    from imagen_jax.evaluation.blind.votes import count_votes, format_result, read_key, read_votes
    from imagen_jax.io.atomic import write_json
    from imagen_jax.io.paths import as_path

    key = read_key(as_path(args.required("key", "runs/blind.key.json")))
    result = count_votes(key, read_votes([as_path(file) for file in args.files], key))
    if args.out:
        write_json(as_path(args.out), result)
    print(format_result(result))
