"""Check a data set before training on it: `imagen inspect --config=FILE --out=DIR`.

Reads and decodes records as training would. Writes `OUT/report.html` with `OUT/contact_sheet.png` and, where images
look alike, `OUT/near_duplicates.png`; `OUT/report.json` has the same as data: unreadable records with reasons, image
sizes, captions that are missing, truncated or repeated, near duplicates, word frequencies, and how often groups of
words are mentioned. Exit code 1: the data cannot be used.
"""

from __future__ import annotations

import sys

from absl import flags

from imagen_jax.cli.flags import CommandFlags, define_config, define_path
from imagen_jax.io.text import printable


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    define_config(values, "The stage whose data to check.")
    define_path(values, "out", None, "The folder to write to.")
    flags.DEFINE_string("split", None, "The split to check; the config's by default.", flag_values=values)
    flags.DEFINE_integer(
        "records",
        100_000,
        "Check at most this many records, chosen at random; 0 for all.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_string(
        "groups",
        None,
        "Groups of words to compare, such as 'woman|women,man|men': how many captions mention each.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "column", None, "A metadata column whose values to compare in the same way.", flag_values=values
    )


def run(args: CommandFlags) -> int:
    """Checks the data of the config; returns 1 if it cannot be used."""
    from imagen_jax.inspection import html_report
    from imagen_jax.inspection.inspect import inspect
    from imagen_jax.inspection.word_stats import column_groups, word_groups

    config = args.load_config()
    groupings = [word_groups(args.groups)] if args.groups else []
    groupings += [column_groups(args.column)] if args.column else []
    out = args.output_folder("runs/data")

    report = inspect(config, out, split=args.split, records=args.records, groupings=groupings)

    for name, value in html_report.summary_rows(report):
        print(f"{name:30} {printable(value)}")
    print(f"{out / 'report.html'} shows more, {out / 'report.json'} has it as data")
    if report["unusable"]:
        print(f"the data cannot be used: {report['unusable']}", file=sys.stderr)
        return 1
    return 0
