"""Look at a data set before training on it: ``python -m imagen_jax.check_data --config=FILE --out=DIR``.

Reads and decodes records as training would. Writes ``OUT/report.html`` with ``OUT/contact_sheet.png`` and, where
pictures look alike, ``OUT/look_alike.png``; ``OUT/findings.json`` has the same as data: what cannot be read and why,
sizes, captions that are missing, cut or repeated, pictures that look alike, words by frequency, how evenly groups are
spoken of. Exit code 1: the data cannot be used.
"""

from __future__ import annotations

import sys

from absl import flags
from ml_collections import config_flags

from imagen_jax import commands
from imagen_jax.audit import report
from imagen_jax.audit.check import check
from imagen_jax.audit.words import column_groups, word_groups
from imagen_jax.grids import printable

CONFIG = config_flags.DEFINE_config_file("config", None, "The stage whose data to look at.")
OUT = flags.DEFINE_string("out", None, "The folder to write to.")
SPLIT = flags.DEFINE_string("split", None, "The split to look at; the config's by default.")
RECORDS = flags.DEFINE_integer(
    "records", 100_000, "Look at so many, chosen by chance, where there are more; 0 for all.", lower_bound=0
)
GROUPS = flags.DEFINE_string(
    "groups", None, "Groups of words to compare, such as 'woman|women,man|men': how many captions speak of each."
)
COLUMN = flags.DEFINE_string("column", None, "A column of metadata whose values to compare in the same way.")


def main() -> None:
    """Looks at the data of the flags."""
    config = commands.required_config(CONFIG.value)
    groupings = [word_groups(GROUPS.value)] if GROUPS.value else []
    groupings += [column_groups(COLUMN.value)] if COLUMN.value else []
    out = commands.writable_folder(OUT.value, "out", "runs/data")

    found = check(config, SPLIT.value or config.data.split, RECORDS.value, groupings, out)

    for what, value in report.lines(found):
        print(f"{what:30} {printable(value)}")
    print(f"{out / 'report.html'} shows more, {out / 'findings.json'} has it as data")
    if found["unusable"]:
        print(f"the data cannot be used: {found['unusable']}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    commands.run(main)
