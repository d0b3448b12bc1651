"""Inspects a data set: scans it, computes statistics, and writes a report with images to a folder."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.config.data_schema import DataConfig, FileKeys
from imagen_jax.config.load import load_config
from imagen_jax.config.schema import StageConfig, TextConfig
from imagen_jax.data.dataset import first_caption
from imagen_jax.data.left_out import left_out_of
from imagen_jax.data.record import Source
from imagen_jax.data.transforms import Transform
from imagen_jax.datasets.captions import check_captions
from imagen_jax.datasets.from_config import make_transform
from imagen_jax.datasets.registry import open_source
from imagen_jax.errors import ConfigError
from imagen_jax.images.grid import image_grid, save_png
from imagen_jax.inspection import html_report
from imagen_jax.inspection.scan import RecordStats, load_images, scan
from imagen_jax.inspection.statistics import (
    caption_statistics,
    column_statistics,
    group_statistics,
    image_statistics,
    near_duplicate_groups,
)
from imagen_jax.inspection.word_stats import Grouping
from imagen_jax.io.atomic import atomic_write, write_json
from imagen_jax.io.paths import as_path
from imagen_jax.text.encoder import load_tokenizer
from imagen_jax.text.tokenizer import Tokenizer

_CONTACT_SHEET_IMAGES = 48
_DUPLICATE_GROUPS_SHOWN = 9  # two images of each
_MAX_LABEL = 120  # characters below an image


def inspect(
    config: StageConfig | str | Path,
    out: str | Path,
    *,
    split: str | None = None,
    records: int = 100_000,
    groupings: Sequence[Grouping] = (),
) -> dict[str, Any]:
    """Inspects the data of a config and writes a report to a folder.

    Args:
        config: config of a stage, or the path of its file.
        out: gets `report.html`, `report.json`, `contact_sheet.png` and, if there are any, `near_duplicates.png`.
        split: split of the data; by default the training split.
        records: number of records to scan, chosen at random if there are more; 0 for all.
        groupings: groups of records to compare by frequency.

    Returns:
        The contents of `report.json`.

    Raises:
        ConfigError: the data cannot be opened, see `open_source` and `Transform`.
    """
    config = load_config(config)
    out, split = as_path(out), split or config.data.split
    out.mkdir(parents=True, exist_ok=True)
    image_size = config.image_hw
    transform = make_transform(config.data, image_size, config.channels)
    max_corrupt = config.data.max_corrupt if isinstance(config.data, FileKeys) else 0.0
    source = open_source(config.data, split, image_size)

    scanned = scan(source, transform, _sample_indices(len(source), records, config.seed), config.data.threads)

    duplicates = near_duplicate_groups(scanned)
    images = image_statistics(scanned, duplicates, len(source), image_size, max_corrupt)
    report = {
        "source": repr(source),
        "split": split,
        **images,
        "unusable": images["unusable"] or _reason_without_captions(config.data, source, scanned),
        "left_out": left_out_of(source).to_json(),
        "captions": caption_statistics(scanned, _tokenizer_or_reason(config.text)),
        "columns": column_statistics(scanned),
        "groups": [group_statistics(scanned, grouping) for grouping in groupings],
    }
    write_json(out / "report.json", report)
    files = _write_images(source, transform, scanned, duplicates, out)
    atomic_write(out / "report.html", html_report.render_report(report, f"{source!r}, split {split}", files).encode())
    return report


def _reason_without_captions(config: DataConfig, source: Source, scanned: Sequence[RecordStats]) -> str:
    """Returns why there is no text to train on; "" if there is a caption, or if the config allows that there is none.

    Records that cannot be read have no captions here, and are reported as they are.
    """
    if any(caption.strip() for record in scanned for caption in record.captions):
        return ""
    try:
        check_captions(config, [source])
    except ConfigError as error:
        return str(error)
    return ""


def _sample_indices(length: int, count: int, seed: int) -> Sequence[int]:
    """Samples the sorted indices of `count` records; all of them for 0 or if there are fewer."""
    if not 0 < count < length:
        return range(length)
    return sorted(np.random.default_rng(seed).choice(length, count, replace=False, shuffle=False).tolist())


def _tokenizer_or_reason(text: TextConfig) -> Tokenizer | str:
    """Returns the tokenizer of a config's `text`, or why it is not available: the rest is inspected anyway."""
    try:
        return load_tokenizer(text.model, text.length, text.padding, text.cleaning)
    except ConfigError as error:
        return f"not counted: {error}"


def _write_images(
    source: Source,
    transform: Transform | None,
    scanned: Sequence[RecordStats],
    duplicates: Sequence[Sequence[RecordStats]],
    out: Path,
) -> dict[str, str]:
    """Writes the contact sheet and the near duplicates; returns their file names by title."""
    samples = _spread([record for record in scanned if not record.reason], _CONTACT_SHEET_IMAGES)
    pairs = [record for group in duplicates[:_DUPLICATE_GROUPS_SHOWN] for record in group[:2]]
    captions = [first_caption(record.captions) for record in samples]
    sheets = [
        ("Images as seen in training", "contact_sheet.png", samples, captions),
        ("Near duplicates, in pairs", "near_duplicates.png", pairs, [record.name for record in pairs]),
    ]
    files = {}
    for title, file, records, labels in sheets:
        (out / file).unlink(missing_ok=True)
        if records:
            images = load_images(source, transform, records)
            save_png(image_grid(images, [_shorten(label) for label in labels], columns=6), out / file)
            files[title] = file
    return files


def _spread(records: Sequence[RecordStats], count: int) -> list[RecordStats]:
    """Returns at most `count` records, evenly spaced."""
    return [records[i * len(records) // count] for i in range(count)] if len(records) > count else list(records)


def _shorten(text: str) -> str:
    """Shortens a text to the space below an image."""
    return textwrap.shorten(text, _MAX_LABEL, placeholder=" …")
