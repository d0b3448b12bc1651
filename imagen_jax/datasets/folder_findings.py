"""What a folder has beside images and their captions, and images that lack a caption: counted, named, with reasons."""

from __future__ import annotations

import collections
import posixpath
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from imagen_jax.data.captions import is_one_text
from imagen_jax.data.encodings import EncodingError
from imagen_jax.data.left_out import LeftOut
from imagen_jax.data.record import CorruptRecordError
from imagen_jax.datasets.caption_files import caseless
from imagen_jax.datasets.file_kinds import SYSTEM_FILE, is_hidden, is_unread, system_reason, unread_reason

T = TypeVar("T")

NOT_USED = "file(s) not used"
_MAX_SUFFIXES = 20  # that have a finding of their own
# files that may be metadata under another name
_TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_TEXTS = 16  # caption files that are read at the start, spread over all


def user_files(files: Iterable[str], place: str, left_out: LeftOut) -> list[str]:
    """Returns the sorted files that are neither hidden nor a system's own, which are counted."""
    kept: list[str] = []
    others: dict[str, list[str]] = collections.defaultdict(list)
    for name in sorted(files):
        reason = SYSTEM_FILE if is_hidden(name) else system_reason(name)
        (others[reason] if reason else kept).append(name)
    for reason, names in others.items():
        left_out.add(place, NOT_USED, reason, names)
    return kept


def note_skipped(skipped: Mapping[str, Collection[str]], place: str, left_out: LeftOut) -> None:
    """Counts the links and folders that a listing has skipped, by reason."""
    for reason, names in skipped.items():
        left_out.add(place, "link(s) or folder(s) not read", reason, sorted(names))


def note_files(others: Sequence[str], without: Sequence[str], place: str, left_out: LeftOut) -> None:
    """Counts the files that are neither images nor their captions, by reason.

    Args:
        others: the files.
        without: images without a caption.
        place: the folder.
        left_out: gets the findings.
    """
    stems = {caseless(stem) for image in without for stem in (posixpath.splitext(image)[0], image)}
    by_reason = collections.defaultdict(list)
    for name in sorted(others):
        by_reason[_reason(name, stems)].append(name)
    common = sorted(by_reason, key=lambda reason: -len(by_reason[reason]))
    for reason in common[:_MAX_SUFFIXES]:
        left_out.add(place, NOT_USED, reason, by_reason[reason])
    rest = [name for reason in common[_MAX_SUFFIXES:] for name in by_reason[reason]]
    left_out.add(place, NOT_USED, "files with other suffixes are not read", rest)


def _reason(name: str, stems: Collection[str]) -> str:
    """Returns why a file is not used; `stems` are of images without a caption."""
    stem, suffix = posixpath.splitext(name)
    if is_unread(name):
        return unread_reason(name)
    if suffix and caseless(stem) in stems:
        return (
            f"they have the names of images without a caption; to read their captions, "
            f"--config.data.caption_suffix={suffix}"
        )
    if stems and suffix.lower() in _TABLES:
        return "metadata are read from files called metadata.jsonl, metadata.csv, metadata.parquet or meta_cap.json"
    return unread_reason(name)


def note_one_text(items: Sequence[T], read: Callable[[T], tuple[str, str]], place: str, left_out: LeftOut) -> None:
    """Notes whether most caption files look like one text of several lines, by some of them.

    Args:
        items: stand for caption files, each of whose lines is read as a caption.
        read: returns (name, text) of one.
        place: the folder or the shards.
        left_out: gets the finding.
    """
    sample = [items[i * len(items) // _TEXTS] for i in range(_TEXTS)] if len(items) > _TEXTS else items
    alike = []
    for item in sample:
        try:
            name, text = read(item)
        except (CorruptRecordError, EncodingError):
            continue  # it is reported when its image is read
        if is_one_text(text):
            alike.append(name)
    if 2 * len(alike) > len(sample):
        reason = (
            f"most of {len(sample)} looked at are one text of several lines, and each line is read as a caption; "
            "to read a file as one caption, --config.data.caption_files=whole"
        )
        left_out.add(place, "caption file(s) divided", reason, alike)
