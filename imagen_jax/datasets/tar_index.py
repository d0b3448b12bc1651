"""Shards, tar files of examples: their names, and where each example lies in them.

The index of a shard is made once, from the headers of its members, and kept: beside the shard, or where nothing can be
written there, in the folder CACHE. It holds for a shard of that size and time only.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import os
import re
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from imagen_jax.datasets import tar
from imagen_jax.errors import ConfigError
from imagen_jax.io import storage

PICTURE, TEXT, METADATA = range(3)
PARTS = {"jpg": PICTURE, "jpeg": PICTURE, "png": PICTURE, "webp": PICTURE, "txt": TEXT, "json": METADATA}
MAX_BYTES = (1 << 28, 1 << 20, 1 << 20)  # of a picture, a text, metadata
MAX_NAME = 4096  # characters, of a member
MAX_MEMBERS = 4_000_000  # of a shard
MAX_SHARDS = 1_000_000
NOWHERE = (0, 0)
MAGIC = b"imagen_jax index of a shard, 1\n"
CACHE = "~/.cache/imagen_jax/shards"
# What is read at once while a shard is indexed: here a header and a short text; from elsewhere pictures too, since
# asking for a part takes longer than reading it.
LOCAL_WINDOW, REMOTE_WINDOW = 2048, 1 << 23
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")

Ignored = dict[str, tuple[int, str]]  # members that are no part of an example: reason → (how many, the first's name)


class Index(NamedTuple):
    """Where the examples of a shard lie in it.

    places: uint32 [N, 3, 2], of picture, text and metadata of each example: the first block of its headers, and the
        number of blocks from there to the end of its data; 0 blocks of what it does not have
    ignored: the members that are no part of an example
    """

    places: np.ndarray
    ignored: Ignored


def shard_names(shards: str | Sequence[str]) -> list[str]:
    """The tar files that names stand for: ranges counted out, folders looked into.

    Raises UsageError as ``expand``, and where there is no file, or one twice.
    """
    given = [shards] if isinstance(shards, str) else list(shards)
    names = [name for pattern in given for name in expand(pattern)]
    found = [file for name in names for file in ([name] if name.endswith(".tar") else storage.files_in(name, ".tar"))]
    if not found:
        raise ConfigError(f"there is no shard in {given!r}: give tar files, shards/{{00000..00099}}.tar, or a folder")
    if len(set(found)) < len(found):
        raise ConfigError(f"the shards {given!r} name a file twice, and its examples would count twice: name it once")
    return found


def expand(pattern: str) -> list[str]:
    """The names that a pattern stands for: ``{00000..00099}`` counts, with as many digits as it begins with.

    Raises UsageError for a command (``pipe:``) and an address of the web, which are never followed, and for a range of
    no number.
    """
    if SCHEME.match(pattern) and not storage.is_remote(pattern):
        raise ConfigError(
            f"shard {pattern!r} names no file: no command is run for shards, and none is read but from here and from "
            "gs://; give names of tar files"
        )
    pieces = RANGE.split(pattern)  # text, first, last, text, first, last, text
    texts, firsts, lasts = pieces[::3], pieces[1::3], pieces[2::3]
    spans = [range(int(first), int(last) + 1) for first, last in zip(firsts, lasts, strict=True)]
    if not 0 < math.prod(map(len, spans)) <= MAX_SHARDS:
        raise ConfigError(f"shard {pattern!r} stands for no name, or for more than {MAX_SHARDS:,}: mend its range")
    counted = [[f"{i:0{len(first)}}" for i in span] for span, first in zip(spans, firsts, strict=True)]
    return [
        "".join(text + number for text, number in zip(texts, (*numbers, ""), strict=True))
        for numbers in itertools.product(*counted)
    ]


def shard_index(shard: str) -> Index:
    """The index of a shard: the one that is kept, if the shard has not changed since, else made now and kept.

    Raises UsageError, with the name of the shard, if that is not there, broken or cut short.
    """
    try:
        stamp = storage.stamp(shard)
        for place in index_places(shard):
            index = read_index(place, stamp)
            if index is not None:
                return index
        index = make_index(windowed(shard), stamp.size)
    except FileNotFoundError as error:
        raise ConfigError(f"shard {shard} is not there: put it there, or take it off the list") from error
    except (OSError, tar.TarError) as error:
        raise ConfigError(f"shard {shard} {error}: write it again, or take it off the list") from error
    keep_index(shard, stamp, index)
    return index


def make_index(read: tar.ReadAt, size: int) -> Index:
    """The index of a tar file of ``size`` bytes. Raises TarError if it is broken, cut short, compressed or huge."""
    if any(read(0, len(magic)) == magic for magic in COMPRESSED):
        raise tar.TarError("is compressed, which gives no random access: unpack it to plain tar")
    places: dict[str, list[tuple[int, int]]] = {}
    ignored: Ignored = {}
    for count, member in enumerate(tar.members(read, size)):
        if count == MAX_MEMBERS:
            raise tar.TarError(f"has more than {MAX_MEMBERS:,} members: cut it into smaller shards")
        key, part = key_and_part(member.name)
        if reason := why_ignored(member, part):
            ignore(ignored, reason, member.name)
        elif part is not None:
            own = places.setdefault(key, [NOWHERE] * 3)
            if own[part] == NOWHERE:
                own[part] = member.start // tar.BLOCK, (member.end - member.start) // tar.BLOCK
            else:
                ignore(ignored, "its example has another of its kind", member.name)
    for key in [key for key, own in places.items() if own[PICTURE] == NOWHERE]:
        del places[key]
        ignore(ignored, "there is no picture of that name", key)
    return Index(np.array(list(places.values()), np.uint32).reshape(-1, 3, 2), ignored)


def key_and_part(name: str) -> tuple[str, int | None]:
    """(key of its example, which of the PARTS) of a member: endings begin at the first dot, as WebDataset has it."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, ending = file.partition(".")
    return folder + slash + stem, PARTS.get(ending.lower())


def why_ignored(member: tar.Member, part: int | None) -> str:
    """Why a member cannot be part of an example; "" if it can, or is a folder."""
    if member.kind == tar.FOLDER:
        return ""
    if member.kind != tar.FILE:
        return f"it is {member.kind}"
    if len(member.name) > MAX_NAME:
        return f"its name has more than {MAX_NAME:,} characters"
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "its name leads out of the archive"
    if part is None:
        return f"its ending is none of {', '.join(PARTS)}"
    return f"it has more than {MAX_BYTES[part]:,} bytes" if member.size > MAX_BYTES[part] else ""


def ignore(ignored: Ignored, reason: str, name: str, count: int = 1) -> None:
    """Counts members that are ignored."""
    before, first = ignored.get(reason, (0, name[:MAX_NAME]))
    ignored[reason] = before + count, first


def windowed(shard: str) -> tar.ReadAt:
    """Reads a shard a window at a time: a header and what is near it are read at once."""
    least = REMOTE_WINDOW if storage.is_remote(shard) else LOCAL_WINDOW
    start, window = 0, b""

    def read(at: int, count: int) -> bytes:
        nonlocal start, window
        if not start <= at <= at + count <= start + len(window):
            start, window = at, storage.read_part(shard, at, max(count, least))
        return window[at - start : at - start + count]

    return read


def index_places(shard: str) -> tuple[str, str]:
    """Where the index of a shard may be kept, the better place first."""
    whole = shard if storage.is_remote(shard) else os.path.realpath(shard)
    name = hashlib.sha256(os.fsencode(whole)).hexdigest()[:32]
    return f"{shard}.index", os.path.join(os.path.expanduser(CACHE), f"{name}.index")


def keep_index(shard: str, stamp: storage.Stamp, index: Index) -> None:
    """Keeps the index of a shard where that can be written."""
    places = index.places.astype("<u4").tobytes()
    head = {"shard": stamp, "crc32": zlib.crc32(places), "ignored": index.ignored}
    for place in index_places(shard):
        try:
            storage.put(place, MAGIC + json.dumps(head).encode() + b"\n" + places)
            return
        except OSError:
            continue
    logging.warning("the index of shard %s can be kept nowhere, and is made anew each time", shard)


def read_index(place: str, stamp: storage.Stamp) -> Index | None:
    """The index that is kept there, if it is whole and that of a shard with this stamp."""
    try:
        kept = storage.read_part(place, 0, storage.stamp(place).size)
        magic, head, places = kept[: len(MAGIC)], *kept[len(MAGIC) :].split(b"\n", 1)
        found = json.loads(head)
        if magic != MAGIC or found["shard"] != list(stamp) or found["crc32"] != zlib.crc32(places):
            return None
        ignored = {str(reason): (int(count), str(name)) for reason, (count, name) in found["ignored"].items()}
        index = Index(np.frombuffer(places, "<u4").astype(np.uint32).reshape(-1, 3, 2), ignored)
        # whoever wrote it: nothing is asked for that the shard does not have
        return index if np.all(index.places.sum(-1, np.uint64) * tar.BLOCK <= stamp.size) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # whatever lies there instead
