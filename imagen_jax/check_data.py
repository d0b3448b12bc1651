"""Look at a data set before training on it: ``python -m imagen_jax.check_data --config=FILE --out=DIR``.

Reads and decodes records as training would. Writes ``OUT/report.html`` with ``OUT/contact_sheet.png`` and, where
pictures look alike, ``OUT/look_alike.png``; ``OUT/findings.json`` has the same as data: what cannot be read and why,
sizes, captions that are missing, cut or repeated, pictures that look alike, words by frequency, how evenly groups are
spoken of. Exit code 1: the data cannot be used.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from imagen_jax import commands
from imagen_jax import stage as stages
from imagen_jax.audit import report
from imagen_jax.audit.findings import captions, columns, comparison, findings, look_alikes
from imagen_jax.audit.survey import Look, pictures, survey
from imagen_jax.audit.words import column_groups, word_groups
from imagen_jax.data.examples import first_caption, make_transform, max_broken
from imagen_jax.data.records import Source
from imagen_jax.data.sources import make_source
from imagen_jax.data.transforms import Transform
from imagen_jax.errors import UsageError
from imagen_jax.grids import draw_grid, printable, save_png
from imagen_jax.text.encoder import load_tokenizer
from imagen_jax.text.tokens import Tokenizer

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
SHEET = 48  # pictures of the contact sheet
ALIKE = 9  # groups of pictures that look alike to show, two of each
LONGEST = 120  # characters below a picture


def main() -> None:
    """Looks at the data of the flags."""
    config = commands.required_config(CONFIG.value)
    data, image_size, split = config.data, stages.image_size(config), SPLIT.value or config.data.split
    groupings = [word_groups(GROUPS.value)] if GROUPS.value else []
    groupings += [column_groups(COLUMN.value)] if COLUMN.value else []
    out = commands.writable_folder(OUT.value, "out", "runs/data")
    transform = make_transform(data, image_size, config.channels)
    source = make_source(data, split, image_size)

    looks = survey(source, transform, chosen(len(source), RECORDS.value, config.seed), data.threads)

    doubles = look_alikes(looks)
    found = findings(looks, doubles, len(source), image_size, max_broken(data))
    found["captions"] = captions(looks, tokenizer_or_reason(config.text))
    found["columns"] = columns(looks)
    found["groups"] = [comparison(looks, grouping) for grouping in groupings]
    (out / "findings.json").write_text(json.dumps({"source": repr(source), "split": split, **found}, indent=2) + "\n")
    shown = draw(source, transform, looks, doubles, out)
    (out / "report.html").write_text(report.page(found, f"{source!r}, split {split}", shown))

    for what, value in report.lines(found):
        print(f"{what:30} {printable(value)}")
    print(f"{out / 'report.html'} shows more, {out / 'findings.json'} has it as data")
    if found["unusable"]:
        print(f"the data cannot be used: {found['unusable']}", file=sys.stderr)
        sys.exit(1)


def chosen(length: int, count: int, seed: int) -> Sequence[int]:
    """The indices of ``count`` records by chance, in their order; of all for 0, or where these are fewer."""
    if not 0 < count < length:
        return range(length)
    return sorted(np.random.default_rng(seed).choice(length, count, replace=False, shuffle=False).tolist())


def tokenizer_or_reason(text: ml_collections.ConfigDict) -> Tokenizer | str:
    """The tokenizer of a config's ``text``, or why it cannot be had: then all the rest can still be said."""
    try:
        return load_tokenizer(text.model, text.length)
    except UsageError as error:
        return f"not counted: {error}"


def draw(
    source: Source, transform: Transform | None, looks: Sequence[Look], doubles: Sequence[Sequence[Look]], out: Path
) -> dict[str, str]:
    """Draws pictures of the data beside the report: the names of their files by what they show."""
    some = spread([look for look in looks if not look.reason], SHEET)
    pairs = [look for group in doubles[:ALIKE] for look in group[:2]]
    sheets = [
        ("Pictures, as training sees them", "contact_sheet.png", some, [first_caption(look.captions) for look in some]),
        ("Some that look alike, two by two", "look_alike.png", pairs, [look.name for look in pairs]),
    ]
    shown = {}
    for what, file, of, texts in sheets:
        (out / file).unlink(missing_ok=True)
        if of:
            save_png(draw_grid(pictures(source, transform, of), [cut(text) for text in texts], columns=6), out / file)
            shown[what] = file
    return shown


def spread(looks: Sequence[Look], count: int) -> list[Look]:
    """At most so many, evenly from all."""
    return [looks[i * len(looks) // count] for i in range(count)] if len(looks) > count else list(looks)


def cut(text: str) -> str:
    """A text that a picture has room for below it."""
    return textwrap.shorten(text, LONGEST, placeholder=" …")


if __name__ == "__main__":
    commands.run(main)
