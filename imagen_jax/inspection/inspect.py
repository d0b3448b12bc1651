"""The whole check of a data set: a survey, findings, pictures and the report, in a folder."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.config.schema import StageConfig, TextConfig
from imagen_jax.data.dataset import first_caption
from imagen_jax.data.record import Source
from imagen_jax.data.transforms import Transform
from imagen_jax.datasets.from_config import make_transform
from imagen_jax.datasets.registry import make_source
from imagen_jax.errors import ConfigError
from imagen_jax.images.grid import draw_grid, save_png
from imagen_jax.inspection import html_report
from imagen_jax.inspection.scan import RecordStats, load_images, scan
from imagen_jax.inspection.statistics import (
    captions,
    columns,
    group_statistics,
    near_duplicate_groups,
    record_statistics,
)
from imagen_jax.inspection.word_stats import Grouping
from imagen_jax.io.atomic import write_json, write_whole
from imagen_jax.text.encoder import load_tokenizer
from imagen_jax.text.tokenizer import Tokenizer

SHEET = 48  # pictures of the contact sheet
ALIKE = 9  # groups of pictures that look alike to show, two of each
LONGEST = 120  # characters below a picture


def inspect(
    config: StageConfig,
    out: str | Path,
    *,
    split: str | None = None,
    records: int = 100_000,
    groupings: Sequence[Grouping] = (),
) -> dict[str, Any]:
    """Looks at the data of a config and writes what it finds into a folder; the findings.

    Args:
        config: of a stage.
        out: gets `report.html`, `report.json`, `contact_sheet.png` and, if there are any, `near_duplicates.png`.
        split: of its data; the training split by default.
        records: records to look at, chosen at random where there are more; 0 for all.
        groupings: how to tell records apart, to compare how many there are of each group.

    Raises:
        UsageError: as ``make_source`` and ``Transform``.
    """
    out, split = Path(out), split or config.data.split
    out.mkdir(parents=True, exist_ok=True)
    image_size = config.image_hw
    transform = make_transform(config.data, image_size, config.channels)
    source = make_source(config.data, split, image_size)

    looks = scan(source, transform, _sample_indices(len(source), records, config.seed), config.data.threads)

    doubles = near_duplicate_groups(looks)
    found = {
        "source": repr(source),
        "split": split,
        **record_statistics(looks, doubles, len(source), image_size, config.data.max_corrupt if transform else 0.0),
        "captions": captions(looks, tokenizer_or_reason(config.text)),
        "columns": columns(looks),
        "groups": [group_statistics(looks, grouping) for grouping in groupings],
    }
    write_json(out / "report.json", found)
    shown = draw(source, transform, looks, doubles, out)
    write_whole(out / "report.html", html_report.render_report(found, f"{source!r}, split {split}", shown).encode())
    return found


def _sample_indices(length: int, count: int, seed: int) -> Sequence[int]:
    """The indices of ``count`` records by chance, in their order; of all for 0, or where these are fewer."""
    if not 0 < count < length:
        return range(length)
    return sorted(np.random.default_rng(seed).choice(length, count, replace=False, shuffle=False).tolist())


def tokenizer_or_reason(text: TextConfig) -> Tokenizer | str:
    """The tokenizer of a config's ``text``, or why it cannot be had: then all the rest can still be said."""
    try:
        return load_tokenizer(text.model, text.length)
    except ConfigError as error:
        return f"not counted: {error}"


def draw(
    source: Source, transform: Transform | None, looks: Sequence[RecordStats], doubles: Sequence[Sequence[RecordStats]], out: Path
) -> dict[str, str]:
    """Draws pictures of the data beside the report: the names of their files by what they show."""
    some = spread([look for look in looks if not look.reason], SHEET)
    pairs = [look for group in doubles[:ALIKE] for look in group[:2]]
    sheets = [
        ("Pictures, as training sees them", "contact_sheet.png", some, [first_caption(look.captions) for look in some]),
        ("Some that look alike, two by two", "near_duplicates.png", pairs, [look.name for look in pairs]),
    ]
    shown = {}
    for what, file, of, texts in sheets:
        (out / file).unlink(missing_ok=True)
        if of:
            save_png(draw_grid(load_images(source, transform, of), [cut(text) for text in texts], columns=6), out / file)
            shown[what] = file
    return shown


def spread(looks: Sequence[RecordStats], count: int) -> list[RecordStats]:
    """At most so many, evenly from all."""
    return [looks[i * len(looks) // count] for i in range(count)] if len(looks) > count else list(looks)


def cut(text: str) -> str:
    """A text that a picture has room for below it."""
    return textwrap.shorten(text, LONGEST, placeholder=" …")
