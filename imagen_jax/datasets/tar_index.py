"""Shard names, and an index of the examples in each shard (a tar file).

The index of a shard is built once from the headers of its members and saved: beside the shard or, if nothing can be
written there, in _CACHE_FOLDER. It is valid only for a shard with the same size and modification time.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
import logging
import math
import os
import posixpath
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imagen_jax.data.left_out import LeftOut
from imagen_jax.datasets import tar
from imagen_jax.datasets.file_kinds import is_unread, system_reason, unread_reason
from imagen_jax.datasets.folder_findings import NOT_USED, note_skipped, user_files
from imagen_jax.errors import ConfigError
from imagen_jax.images.formats import image_suffixes
from imagen_jax.io import storage
from imagen_jax.io.paths import expand_user

logger = logging.getLogger(__name__)

IMAGE, TEXT, METADATA = range(3)

_PART_OF_SUFFIX = {
    **{suffix.removeprefix("."): IMAGE for suffix in image_suffixes()},
    "txt": TEXT,
    "json": METADATA,
}
# of several images of an example, one in these formats is used, the first in the archive
_FIRST_CHOICE = ("jpg", "jpeg", "png", "webp")
_MAX_PART_BYTES = (1 << 28, 1 << 20, 1 << 20)  # of an image, a text, metadata
_MAX_NAME = 4096  # characters of a member's name
_MAX_MEMBERS = 4_000_000  # of a shard
_MAX_SHARDS = 1_000_000
_ABSENT = (0, 0)
_MAGIC = b"imagen_jax index of a shard, 2\n"
_CACHE_FOLDER = "~/.cache/imagen_jax/shards"
# Bytes per read while a shard is indexed. Local: a header and a short text. Remote: images too, because a request takes
# longer than the transfer.
_LOCAL_WINDOW, _REMOTE_WINDOW = 2048, 1 << 23
_SUFFIX, _INDEX_SUFFIX = ".tar", ".index"
_COMPRESSION_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_BRACE_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_URL_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")

_NOT_USED = "member(s) not used"
_COMPRESSED = "compressed tar files have no random access: decompress them to plain tar"
_BELOW = "tar files in folders below are not read: name their folders in data.shards too"


class ShardIndex(NamedTuple):
    """Positions of the examples in a shard.

    Attributes:
        extents: uint32 [N, 3, 2], for image, text and metadata of each example (first block of its headers, number of
            blocks up to the end of its data); 0 blocks if absent.
        left_out: the members that belong to no example; the place of its findings is "".
    """

    extents: np.ndarray
    left_out: LeftOut


def expand_shards(shards: str | Sequence[str], left_out: LeftOut) -> list[str]:
    """Returns the tar files that names stand for.

    Args:
        shards: tar files, with ranges such as `{00000..00099}` or `*` and `?` in their names, or folders of tar files.
        left_out: gets the files of the folders that are not used.

    Raises:
        ConfigError: a name is a command or a web address, has an invalid range, or stands for no tar file; or a file
            is named twice.
    """
    patterns = [expand_user(pattern) for pattern in ([shards] if isinstance(shards, str) else shards)]
    names = [name for pattern in patterns for name in _expand_braces(pattern)]
    files = [file for name in names for file in _files_of(name, left_out)]
    if not files:
        raise ConfigError("config.data.shards is empty: give tar files, shards/{00000..00099}.tar, or a folder of them")
    if len(set(files)) < len(files):
        raise ConfigError(
            f"the shards {patterns!r} name a file twice, and its examples would count twice: name it once"
        )
    return files


def _files_of(name: str, left_out: LeftOut) -> list[str]:
    """Returns the tar files that a name without ranges stands for. Raises ConfigError if there are none."""
    if _is_tar(name) and not storage.is_pattern(name):
        return [name]
    if storage.is_folder(name):
        files = _files_in(name, left_out)
    else:
        files = [file for file in storage.glob_files(name) if _is_tar(file)]
    if not files:
        unused = "".join(f"; {message}" for message in left_out.messages())
        raise ConfigError(
            f"there is no shard in {name!r}: give tar files, shards/{{00000..00099}}.tar, or a folder of them{unused}"
        )
    return files


def _files_in(folder: str, left_out: LeftOut) -> list[str]:
    """Returns the sorted tar files directly in a folder; what else is there is counted in `left_out`."""
    listing = storage.Folder(folder).list_tree()
    note_skipped(listing.skipped, folder, left_out)
    names = user_files((name for name in listing.sizes if not _is_index(name)), folder, left_out)
    unused = collections.defaultdict(list)
    files = []
    for name in names:
        if not _is_tar(name):
            is_compressed = ".tar." in name.lower() or name.lower().endswith(".tgz")
            unused[_COMPRESSED if is_compressed else unread_reason(name)].append(name)
        elif "/" in name:
            unused[_BELOW].append(name)
        else:
            files.append(posixpath.join(folder, name) if storage.is_remote(folder) else str(Path(folder, name)))
    for reason, others in unused.items():
        left_out.add(folder, NOT_USED, reason, others)
    return files


def _is_tar(name: str) -> bool:
    return name.lower().endswith(_SUFFIX)


def _is_index(name: str) -> bool:
    """Returns whether a file is the saved index of a shard."""
    return name.endswith(_INDEX_SUFFIX) and _is_tar(name.removesuffix(_INDEX_SUFFIX))


def _expand_braces(pattern: str) -> list[str]:
    """Expands ranges such as `{00000..00099}`; numbers are padded to the width of the first one."""
    if _URL_SCHEME.match(pattern) and not storage.is_remote(pattern):
        raise ConfigError(
            f"shard {pattern!r} is not a file name: commands and web addresses are never followed; give local names of "
            "tar files, or gs://"
        )
    pieces = _BRACE_RANGE.split(pattern)  # text, first, last, text, first, last, text
    texts, firsts, lasts = pieces[::3], pieces[1::3], pieces[2::3]
    ranges = [range(int(first), int(last) + 1) for first, last in zip(firsts, lasts, strict=True)]
    if not 0 < math.prod(map(len, ranges)) <= _MAX_SHARDS:
        raise ConfigError(f"shard {pattern!r} stands for no name, or for more than {_MAX_SHARDS:,}: correct its range")
    padded = [[f"{i:0{len(first)}}" for i in numbers] for numbers, first in zip(ranges, firsts, strict=True)]
    return [
        "".join(text + number for text, number in zip(texts, (*numbers, ""), strict=True))
        for numbers in itertools.product(*padded)
    ]


def load_index(shard: str) -> ShardIndex:
    """Returns the index of a shard: the saved one if the shard has not changed since, else a new one, which is saved.

    Raises:
        ConfigError: the shard does not exist, or is damaged or truncated.
    """
    try:
        version = storage.file_version(shard)
        for path in _index_paths(shard):
            index = _read_index(path, version)
            if index is not None:
                return index
        index = _build_index(windowed_reader(shard), version.size)
    except FileNotFoundError as error:
        raise ConfigError(f"shard {shard} does not exist: put it there, or remove it from the list") from error
    except (OSError, tar.TarError) as error:
        raise ConfigError(f"shard {shard} {error}: write it again, or remove it from the list") from error
    _save_index(shard, version, index)
    return index


def _build_index(read: tar.ReadRange, size: int) -> ShardIndex:
    """Builds the index of a tar file of `size` bytes. Raises TarError."""
    if any(read(0, len(magic)) == magic for magic in _COMPRESSION_MAGIC):
        raise tar.TarError("is compressed, so it has no random access: decompress it to plain tar")
    examples = _Examples()
    for count, member in enumerate(tar.iter_members(read, size)):
        if count == _MAX_MEMBERS:
            raise tar.TarError(f"has more than {_MAX_MEMBERS:,} members: split it into smaller shards")
        reason = _reason_to_ignore(member)
        if reason:
            examples.ignore(reason, member.name)
        elif member.kind == tar.FILE:
            examples.add(member)
    return examples.index()


class _Part(NamedTuple):
    """A member that may be a part of an example: its name, which of the parts it is, and its extent in blocks."""

    name: str
    part: int
    extent: tuple[int, int]


class _Examples:
    """Assigns members to examples, by their names.

    In WebDataset a name is a key up to the first dot and then a field: `000012.jpg` and `000012.txt` are an example.
    Names of people's files have dots too. Of `photo.v2.jpg` the field would be `v2.jpg`, which is not known: then the
    last suffix counts, and the key is `photo.v2`. But `000012.seg.png` beside `000012.jpg` is a field indeed: an
    example that has an image gets no other, unless the other has a text of its own, `000012.seg.txt`.
    """

    def __init__(self) -> None:
        self._extents: dict[str, list[tuple[int, int]]] = {}
        self._second_choice: list[_Part] = []  # images in other formats than _FIRST_CHOICE
        self._dotted: list[_Part] = []  # members whose field is not known, but their last suffix is
        self._left_out = LeftOut()

    def ignore(self, reason: str, name: str) -> None:
        """Counts a member that belongs to no example."""
        self._left_out.add("", _NOT_USED, reason, [name])

    def add(self, member: tar.Member) -> None:
        """Adds a member, of any name."""
        key, field = _split_name(member.name)
        extent = member.start // tar.BLOCK, (member.end - member.start) // tar.BLOCK
        part = _PART_OF_SUFFIX.get(field)
        known = part if part is not None else _PART_OF_SUFFIX.get(field.rpartition(".")[2])
        if known is None:
            self.ignore(_unknown_reason(member.name), member.name)
        elif member.size > _MAX_PART_BYTES[known]:
            self.ignore(f"it has more than {_MAX_PART_BYTES[known]:,} bytes", member.name)
        elif part is None:
            self._dotted.append(_Part(member.name, known, extent))
        elif part == IMAGE and field not in _FIRST_CHOICE:
            self._second_choice.append(_Part(member.name, part, extent))
        else:
            self._assign(key, _Part(member.name, part, extent))

    def index(self) -> ShardIndex:
        """Returns the index, once all members are added."""
        for member in self._second_choice:
            self._assign(_split_name(member.name)[0], member)
        self._assign_dotted()
        for key in [key for key, example in self._extents.items() if example[IMAGE] == _ABSENT]:
            del self._extents[key]
            self.ignore("there is no image with that name", key)
        extents = np.array(list(self._extents.values()), np.uint32).reshape(-1, 3, 2)
        return ShardIndex(extents, self._left_out)

    def _assign(self, key: str, member: _Part) -> None:
        example = self._extents.setdefault(key, [_ABSENT] * 3)
        if example[member.part] == _ABSENT:
            example[member.part] = member.extent
        else:
            self.ignore("its example has another of its kind", member.name)

    def _assign_dotted(self) -> None:
        """Assigns members with dots in their names."""
        images = collections.defaultdict(list)
        for member in self._dotted:
            if member.part == IMAGE:
                images[_split_name(member.name)[0]].append(member)
        texts = {_stem(member.name) for member in self._dotted if member.part == TEXT}
        for key, members in images.items():
            example = tuple(self._extents.get(key, [_ABSENT] * 3))
            for member in members:
                stem = _stem(member.name)
                if stem in texts or not any(extent != _ABSENT for extent in example):
                    self._assign(stem, member)
                elif example[IMAGE] != _ABSENT:
                    self.ignore("its example has an image, of which the dots in its name make it a field", member.name)
                elif len(members) == 1:
                    self._assign(key, member)
                else:
                    self.ignore("its example has several images, all with further dots in their names", member.name)
        for member in self._dotted:
            if member.part != IMAGE:
                self._assign_description(member)

    def _assign_description(self, member: _Part) -> None:
        """Assigns a text with dots in its name to the image with the same name, or with its name as `a.jpg.txt`."""
        stem = _stem(member.name)
        keys = [stem]
        if _PART_OF_SUFFIX.get(stem.rpartition(".")[2].lower()) == IMAGE:
            keys.append(_stem(stem))
        for key in keys:
            if self._extents.get(key, [_ABSENT])[IMAGE] != _ABSENT:
                self._assign(key, member)
                return
        self.ignore("no image has its name", member.name)


def _split_name(name: str) -> tuple[str, str]:
    """Returns (key of the example, field in lower case) of a member; a field begins at the first dot of the file."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, field = file.partition(".")
    return folder + slash + stem, field.lower()


def _stem(name: str) -> str:
    """Returns a member's name up to its last suffix."""
    return name.removeprefix("./").rpartition(".")[0]


def _reason_to_ignore(member: tar.Member) -> str:
    """Returns why a member cannot be part of an example, whatever its suffix; "" if it can, or is a folder."""
    if member.kind == tar.DIRECTORY:
        return ""
    if member.kind != tar.FILE:
        return f"it is {member.kind}"
    if len(member.name) > _MAX_NAME:
        return f"its name has more than {_MAX_NAME:,} characters"
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "its name leads out of the archive"
    return system_reason(member.name.removeprefix("./"))


def _unknown_reason(name: str) -> str:
    """Returns why a member with an unknown suffix is not used."""
    if is_unread(name):
        return unread_reason(name)
    images = ", ".join(suffix for suffix, part in _PART_OF_SUFFIX.items() if part == IMAGE)
    return f"its suffix is none of those of images ({images}) and captions (txt, json)"


def windowed_reader(shard: str) -> tar.ReadRange:
    """Returns a function that reads ranges of a shard through a window, so that nearby headers take one read."""
    window_size = _REMOTE_WINDOW if storage.is_remote(shard) else _LOCAL_WINDOW
    window_start, window = 0, b""

    def read(start: int, count: int) -> bytes:
        nonlocal window_start, window
        if not window_start <= start <= start + count <= window_start + len(window):
            window_start, window = start, storage.read_range(shard, start, max(count, window_size))
        return window[start - window_start : start - window_start + count]

    return read


def _index_paths(shard: str) -> tuple[str, str]:
    """Returns where the index of a shard may be saved, the preferred path first."""
    full_path = shard if storage.is_remote(shard) else os.path.realpath(shard)
    name = hashlib.sha256(os.fsencode(full_path)).hexdigest()[:32]
    return f"{shard}{_INDEX_SUFFIX}", os.path.join(os.path.expanduser(_CACHE_FOLDER), f"{name}.index")


def _save_index(shard: str, version: storage.FileVersion, index: ShardIndex) -> None:
    """Saves the index of a shard to the first path that is writable."""
    extents = index.extents.astype("<u4").tobytes()
    header = {
        "shard": version,
        "crc32": zlib.crc32(extents),
        "suffixes": list(_PART_OF_SUFFIX),
        "left_out": index.left_out.to_json(),
    }
    for path in _index_paths(shard):
        try:
            storage.write_file(path, _MAGIC + json.dumps(header).encode() + b"\n" + extents)
            return
        except OSError:
            continue
    logger.warning("the index of shard %s cannot be saved anywhere and is rebuilt each time", shard)


def _read_index(path: str, version: storage.FileVersion) -> ShardIndex | None:
    """Returns a saved index if it is intact and belongs to this version of its shard, else None."""
    try:
        data = storage.read_range(path, 0, storage.file_version(path).size)
        magic, header_line, extents = data[: len(_MAGIC)], *data[len(_MAGIC) :].split(b"\n", 1)
        header = json.loads(header_line)
        if magic != _MAGIC or header["shard"] != list(version) or header["crc32"] != zlib.crc32(extents):
            return None
        if header["suffixes"] != list(_PART_OF_SUFFIX):
            return None  # it was built where other image formats can be decoded
        left_out = LeftOut()
        for finding in header["left_out"]:
            names = [str(name) for name in finding["names"]]
            left_out.add("", str(finding["what"]), str(finding["reason"]), names, int(finding["count"]))
        index = ShardIndex(np.frombuffer(extents, "<u4").astype(np.uint32).reshape(-1, 3, 2), left_out)
        # the file may be forged: never read beyond the end of the shard
        return index if np.all(index.extents.sum(-1, np.uint64) * tar.BLOCK <= version.size) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # not an index
