"""The whole check of a data set: a survey, findings, pictures and the report, in a folder."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from imagen_jax import stage as stages
from imagen_jax.audit import report
from imagen_jax.audit.findings import captions, columns, comparison, findings, look_alikes
from imagen_jax.audit.survey import Look, pictures, survey
from imagen_jax.audit.words import Grouping
from imagen_jax.data.examples import first_caption, make_transform
from imagen_jax.data.records import Source
from imagen_jax.data.sources import make_source
from imagen_jax.data.transforms import Transform
from imagen_jax.errors import UsageError
from imagen_jax.files import write_json, write_whole
from imagen_jax.grids import draw_grid, save_png
from imagen_jax.text.encoder import load_tokenizer
from imagen_jax.text.tokens import Tokenizer

SHEET = 48  # pictures of the contact sheet
ALIKE = 9  # groups of pictures that look alike to show, two of each
LONGEST = 120  # characters below a picture


def check(
    config: ml_collections.ConfigDict, split: str, count: int, groupings: Sequence[Grouping], out: Path
) -> dict[str, Any]:
    """Looks at the data of a config and writes what it finds into a folder; the findings.

    Args:
        config: of a stage.
        split: of its data.
        count: records to look at, chosen by chance where there are more; 0 for all.
        groupings: how to tell records apart, to compare how many there are of each group.
        out: gets ``report.html``, ``findings.json``, ``contact_sheet.png`` and ``look_alike.png``, if there are any.

    Raises:
        UsageError: as ``make_source`` and ``Transform``.
    """
    image_size = stages.image_size(config)
    transform = make_transform(config.data, image_size, config.channels)
    source = make_source(config.data, split, image_size)

    looks = survey(source, transform, chosen(len(source), count, config.seed), config.data.threads)

    doubles = look_alikes(looks)
    found = {
        "source": repr(source),
        "split": split,
        **findings(looks, doubles, len(source), image_size, config.data.max_broken if transform else 0.0),
        "captions": captions(looks, tokenizer_or_reason(config.text)),
        "columns": columns(looks),
        "groups": [comparison(looks, grouping) for grouping in groupings],
    }
    write_json(out / "findings.json", found)
    shown = draw(source, transform, looks, doubles, out)
    write_whole(out / "report.html", report.page(found, f"{source!r}, split {split}", shown).encode())
    return found


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
