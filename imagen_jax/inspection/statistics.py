"""Statistics of scanned records as JSON-compatible values: the contents of report.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from imagen_jax.data.corrupt import max_allowed
from imagen_jax.images.array import Size, format_height_width
from imagen_jax.inspection.near_duplicates import group_near_duplicates
from imagen_jax.inspection.scan import RecordStats
from imagen_jax.inspection.word_stats import Grouping, caption_words, compare_groups
from imagen_jax.text.tokenizer import Tokenizer

_MAX_LISTED = 1000  # files, captions and groups of near duplicates
_MAX_FREQUENT = 200  # words, values of a column
_ASPECT_BINS = (0.5, 0.75, 0.9, 1.1, 1.333, 2.0)  # inner edges, of width / height


def image_statistics(
    records: Sequence[RecordStats],
    duplicates: Sequence[Sequence[RecordStats]],
    num_records: int,
    image_size: Size,
    max_corrupt: float,
) -> dict[str, Any]:
    """Returns the statistics of files and images.

    Args:
        records: the scanned records.
        duplicates: groups of near duplicates among them.
        num_records: number of records in the source.
        image_size: (height, width) that the stage is trained on.
        max_corrupt: fraction of records that may be corrupt.
    """
    readable = [record for record in records if not record.reason]
    unreadable = [{"name": record.name, "reason": record.reason} for record in records if record.reason]
    seconds = sum(record.seconds for record in readable)
    unusable = ""
    if not readable:
        unusable = f"none of {len(records)} records can be read"
    elif len(unreadable) > max_allowed(max_corrupt, len(records)):
        unusable = (
            f"{len(unreadable)} of {len(records)} records cannot be read: config.data.max_corrupt is {max_corrupt}"
        )
    return {
        "records": num_records,
        "scanned": len(records),
        "unusable": unusable,
        "unreadable": len(unreadable),
        "unreadable_files": unreadable[:_MAX_LISTED],
        "sizes": _size_statistics([record.size for record in records if record.size], image_size),
        "near_duplicates": {
            "groups": len(duplicates),
            "images": sum(map(len, duplicates)),
            "names": [[record.name for record in group[:_MAX_FREQUENT]] for group in duplicates[:_MAX_LISTED]],
        },
        "read_per_second_and_core": round(len(readable) / seconds, 1) if seconds else None,
    }


def _size_statistics(sizes: Sequence[Size], image_size: Size) -> dict[str, Any]:
    """Returns the distribution of the sizes and aspect ratios of stored images."""
    if not sizes:
        return {}
    heights, widths = np.array(sizes).T
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    edges = [0.0, *_ASPECT_BINS, np.inf]
    counts, _ = np.histogram(widths / heights, edges)
    aspects = {
        f"{low:g} to {high:g}".replace("to inf", "and more"): int(count)
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    }
    return {
        "smallest": format_height_width(by_area[0]),
        "median": format_height_width(by_area[len(by_area) // 2]),
        "largest": format_height_width(by_area[-1]),
        "smaller_than_image_size": int(np.sum((heights < image_size[0]) | (widths < image_size[1]))),
        "image_size": format_height_width(image_size),
        "aspects": aspects,
    }


def near_duplicate_groups(records: Sequence[RecordStats]) -> list[list[RecordStats]]:
    """Returns the groups of near-duplicate images, the largest first."""
    readable = [record for record in records if not record.reason]
    groups = group_near_duplicates([record.fingerprint for record in readable])
    return [[readable[i] for i in group] for group in groups]


def caption_statistics(records: Sequence[RecordStats], tokenizer: Tokenizer | str) -> dict[str, Any]:
    """Returns the statistics of captions.

    Args:
        records: the scanned records.
        tokenizer: counts truncated captions; or the reason why there is none, then they are not counted.
    """
    all_captions = [caption for record in records for caption in record.captions]
    occurrences = Counter(all_captions)
    repeated = [(caption, count) for caption, count in occurrences.most_common(_MAX_LISTED) if count > 1]
    words = Counter(word for record in records for word in caption_words(record.captions))
    if isinstance(tokenizer, str):
        truncation: dict[str, Any] = {"truncated": None, "truncated_captions": [], "not_counted": tokenizer}
    else:
        truncated = [caption for caption in occurrences if tokenizer.count_truncated([caption])]
        total = sum(occurrences[caption] for caption in truncated)
        truncation = {
            "truncated": total,
            "truncated_captions": truncated[:_MAX_LISTED],
            "tokens": tokenizer.length,
        }
    lengths = [len(caption) for caption in all_captions]
    return {
        "captions": len(all_captions),
        "records_without": sum(not any(caption.strip() for caption in record.captions) for record in records),
        "records_with_several": sum(len(record.captions) > 1 for record in records),
        "median_characters": int(np.median(lengths)) if lengths else 0,
        "longest_characters": max(lengths, default=0),
        **truncation,
        "distinct": len(occurrences),
        "repeated": repeated,
        "words": words.most_common(_MAX_FREQUENT),
        "distinct_words": len(words),
    }


def column_statistics(records: Sequence[RecordStats]) -> dict[str, Any]:
    """Returns the frequent values of metadata columns, of those with a repeated value."""
    columns: dict[str, Counter[str]] = {}
    for record in records:
        for column, value in record.columns.items():
            columns.setdefault(column, Counter())[value] += 1
    return {
        column: {"distinct": len(values), "values": values.most_common(_MAX_FREQUENT)}
        for column, values in columns.items()
        if values.most_common(1)[0][1] > 1
    }


def group_statistics(records: Sequence[RecordStats], grouping: Grouping) -> dict[str, Any]:
    """Returns how often groups are mentioned.

    `ratio` is the frequency of the most frequent group over that of the rarest, None if one is never mentioned.
    """
    groups = compare_groups([(caption_words(record.captions), record.columns) for record in records], grouping)
    counts: list[int] = [group.records for group in groups]
    return {
        "by": grouping.by,
        "ratio": round(max(counts) / min(counts), 2) if min(counts, default=0) else None,
        "groups": [
            {"name": group.name, "records": group.records, "skewed_words": [skew._asdict() for skew in group.skewed]}
            for group in groups
        ],
    }
