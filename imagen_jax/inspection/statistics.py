"""What a survey found, as plain numbers, names and lists: what the JSON file has and the report shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from imagen_jax.data.corrupt import max_allowed
from imagen_jax.images.array import Size, in_pixels
from imagen_jax.inspection.near_duplicates import group_near_duplicates
from imagen_jax.inspection.scan import RecordStats
from imagen_jax.inspection.word_stats import Grouping, compare_groups, caption_words
from imagen_jax.text.tokenizer import Tokenizer

NAMED = 1000  # files, captions and groups of doubles to name at most
FREQUENT = 200  # words, values of a column to name at most
ASPECTS = (0.5, 0.75, 0.9, 1.1, 1.333, 2.0)  # width / height, the borders between kinds


def record_statistics(
    looks: Sequence[RecordStats], doubles: Sequence[Sequence[RecordStats]], records: int, image_size: Size, max_broken: float
) -> dict[str, Any]:
    """What can be said of pictures and files.

    Args:
        looks: at the records.
        doubles: groups of them that look alike.
        records: how many the source has.
        image_size: (height, width) that a stage is trained on.
        max_broken: the share of records that may be broken.
    """
    readable = [look for look in looks if not look.reason]
    broken = [{"name": look.name, "reason": look.reason} for look in looks if look.reason]
    seconds = sum(look.seconds for look in readable)
    verdict = ""
    if not readable:
        verdict = f"none of {len(looks)} records can be read"
    elif len(broken) > max_allowed(max_broken, len(looks)):
        verdict = f"{len(broken)} of {len(looks)} records cannot be read: config.data.max_corrupt is {max_broken}"
    return {
        "records": records,
        "looked_at": len(looks),
        "unusable": verdict,
        "unreadable": len(broken),
        "unreadable_files": broken[:NAMED],
        "sizes": sizes([look.size for look in looks if look.size], image_size),
        "near_duplicates": near_duplicates(doubles),
        "read_per_second_and_core": round(len(readable) / seconds, 1) if seconds else None,
    }


def sizes(found: Sequence[Size], image_size: Size) -> dict[str, Any]:
    """How large pictures are, as stored, and of what aspects."""
    if not found:
        return {}
    heights, widths = np.array(found).T
    by_area = sorted(found, key=lambda size: (size[0] * size[1], size))
    borders = [0.0, *ASPECTS, np.inf]
    counts, _ = np.histogram(widths / heights, borders)
    aspects = {
        f"{low:g} to {high:g}".replace("to inf", "and more"): int(count)
        for low, high, count in zip(borders[:-1], borders[1:], counts, strict=True)
    }
    return {
        "smallest": in_pixels(by_area[0]),
        "median": in_pixels(by_area[len(by_area) // 2]),
        "largest": in_pixels(by_area[-1]),
        "smaller_than_image_size": int(np.sum((heights < image_size[0]) | (widths < image_size[1]))),
        "image_size": in_pixels(image_size),
        "aspects": aspects,
    }


def near_duplicate_groups(looks: Sequence[RecordStats]) -> list[list[RecordStats]]:
    """Groups of pictures that look alike, the largest first."""
    readable = [look for look in looks if not look.reason]
    return [[readable[i] for i in group] for group in group_near_duplicates([look.fingerprint for look in readable])]


def near_duplicates(doubles: Sequence[Sequence[RecordStats]]) -> dict[str, Any]:
    """Groups of pictures that look alike, by name."""
    return {
        "groups": len(doubles),
        "pictures": sum(map(len, doubles)),
        "names": [[look.name for look in group[:FREQUENT]] for group in doubles[:NAMED]],
    }


def captions(looks: Sequence[RecordStats], tokenizer: Tokenizer | str) -> dict[str, Any]:
    """What can be said of captions; in the place of a tokenizer, why there is none, and what is cut not counted."""
    everything = [caption for look in looks for caption in look.captions]
    times = Counter(everything)
    repeated = [(caption, count) for caption, count in times.most_common(NAMED) if count > 1]
    words = Counter(word for look in looks for word in caption_words(look.captions))
    if isinstance(tokenizer, str):
        counted: dict[str, Any] = {"cut": None, "cut_captions": [], "not_counted": tokenizer}
    else:
        cut = [caption for caption in times if tokenizer.count_truncated([caption])]
        total = sum(times[caption] for caption in cut)
        counted = {"cut": total, "cut_captions": cut[:NAMED], "tokens": tokenizer.length}
    lengths = [len(caption) for caption in everything]
    return {
        "captions": len(everything),
        "records_without": sum(not any(caption.strip() for caption in look.captions) for look in looks),
        "records_with_several": sum(len(look.captions) > 1 for look in looks),
        "median_characters": int(np.median(lengths)) if lengths else 0,
        "longest_characters": max(lengths, default=0),
        **counted,
        "distinct": len(times),
        "repeated": repeated,
        "words": words.most_common(FREQUENT),
        "distinct_words": len(words),
    }


def columns(looks: Sequence[RecordStats]) -> dict[str, Any]:
    """The values of metadata by frequency, of columns in which any comes twice."""
    found: dict[str, Counter[str]] = {}
    for look in looks:
        for column, value in look.columns.items():
            found.setdefault(column, Counter())[value] += 1
    return {
        column: {"distinct": len(values), "values": values.most_common(FREQUENT)}
        for column, values in found.items()
        if values.most_common(1)[0][1] > 1
    }


def group_statistics(looks: Sequence[RecordStats], grouping: Grouping) -> dict[str, Any]:
    """How evenly groups are spoken of: ``ratio`` is that of the most and the least frequent, None if that never is."""
    compared = compare_groups([(caption_words(look.captions), look.columns) for look in looks], grouping)
    counts: list[int] = [group.records for group in compared]
    return {
        "by": grouping.by,
        "ratio": round(max(counts) / min(counts), 2) if min(counts, default=0) else None,
        "groups": [
            {"name": group.name, "records": group.records, "skewed_words": [skew._asdict() for skew in group.skewed]}
            for group in compared
        ],
    }
