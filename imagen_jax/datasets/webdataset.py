"""Tar shards of images with captions, as written by WebDataset and img2dataset, with random access.

`000012.jpg` (or `.jpeg`, `.png`, `.webp`) is an image; `000012.txt` and `000012.json` describe it. The members of an
example need not be adjacent. An index of the positions of all members is built once from the headers of each shard, and
saved (see `tar_index.py`). Nothing is unpacked, unpickled or run.
"""

from __future__ import annotations

import json
import logging
import operator
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, SupportsIndex

import numpy as np
from tqdm import tqdm

from imagen_jax.data.record import CorruptRecordError, Record
from imagen_jax.datasets import tar, tar_index
from imagen_jax.datasets.tar_index import IMAGE, METADATA, TEXT
from imagen_jax.errors import ConfigError
from imagen_jax.io import storage

logger = logging.getLogger(__name__)

_THREADS = 8  # that index shards


class WebDatasetSource:
    """The examples of shards, in order, with random access.

    Args:
        names: tar files, with ranges such as `{00000..00099}` in their names, or folders of tar files.

    Raises:
        ConfigError: a name is not a file, a shard is missing, damaged or truncated, or there are no examples.
    """

    def __init__(self, names: str | Sequence[str]) -> None:
        self.shards = tar_index.expand_shards(names)
        with ThreadPoolExecutor(_THREADS) as pool:
            loaded = pool.map(tar_index.load_index, self.shards)
            indices = list(tqdm(loaded, desc="shards", total=len(self.shards), delay=2.0, mininterval=1.0, leave=False))
        self._extents = [index.extents for index in indices]
        self._starts = np.cumsum([0, *map(len, self._extents)])  # index of each shard's first example, and the length
        self.ignored: tar_index.Ignored = {}
        for index in indices:
            for reason, (count, name) in index.ignored.items():
                tar_index.count_ignored(self.ignored, reason, name, count)
        for reason, (count, name) in self.ignored.items():
            logger.warning("%r: %d member(s) ignored, such as %r: %s", self, count, name, reason)
        if not len(self):
            raise ConfigError(f"{self!r} has no image: a shard needs members such as 000012.jpg and 000012.txt")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: SupportsIndex) -> Record:
        shard, extents = self._locate(index)
        name, image = _read_member(shard, extents[IMAGE])
        captions, columns = _read_description(shard, extents)
        return Record(image, captions, f"{shard}/{name}", columns)

    def captions(self, index: SupportsIndex) -> tuple[str, ...]:
        """Returns the captions of record `index` without reading its image."""
        return _read_description(*self._locate(index))[0]

    def columns(self, index: SupportsIndex) -> Mapping[str, str]:
        """Returns the columns of record `index` without reading its image."""
        return _read_description(*self._locate(index))[1]

    def _locate(self, index: SupportsIndex) -> tuple[str, np.ndarray]:
        """Returns the shard of record `index`, and its extents there [3, 2]."""
        i = operator.index(index)
        if not 0 <= i < len(self):
            raise IndexError(f"index {i} is outside [0, {len(self)}) of {self!r}")
        shard = int(np.searchsorted(self._starts, i, side="right")) - 1
        return self.shards[shard], self._extents[shard][i - self._starts[shard]]

    def __repr__(self) -> str:
        return f"WebDatasetSource({self.shards[0]}{' … ' + self.shards[-1] if len(self.shards) > 1 else ''})"


def _read_member(shard: str, extent: np.ndarray) -> tuple[str, bytes]:
    """Returns (name, data) of the member at an extent (first block, number of blocks) of a shard."""
    start, count = (int(number) * tar.BLOCK for number in extent)
    where = f"{shard} at byte {start:,}"
    try:
        data = storage.read_range(shard, start, count)
        member = tar.parse_member(lambda at, size: data[at : at + size], 0)
    except (FileNotFoundError, PermissionError, tar.TarError) as error:
        # other errors, such as those of a network, may be temporary: they end the run
        raise CorruptRecordError(where, f"cannot be read: {error}") from error
    if member is None or member.end != count:
        raise CorruptRecordError(where, "does not match the index: the shard has changed, start again")
    return member.name, data[member.data : member.data + member.size]


def _read_description(shard: str, extents: np.ndarray) -> tuple[tuple[str, ...], dict[str, str]]:
    """Returns (captions, columns) of the example at extents [3, 2] of a shard.

    The captions are the lines of its text; without a text they are `captions` or `caption` of its metadata. The columns
    are the numbers and strings of the metadata.

    Raises:
        CorruptRecordError: the text is not UTF-8, or the metadata are not a JSON object.
    """
    metadata, captions = {}, []
    if extents[METADATA, 1]:
        name, data = _read_member(shard, extents[METADATA])
        try:
            metadata = json.loads(data)
            captions = _metadata_captions(metadata)
        except (ValueError, RecursionError) as error:
            raise CorruptRecordError(f"{shard}/{name}", f"is not valid JSON metadata: {error}") from error
    if extents[TEXT, 1]:
        name, data = _read_member(shard, extents[TEXT])
        try:
            captions = data.decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise CorruptRecordError(f"{shard}/{name}", f"is not UTF-8 text: {error}") from error
    columns = {key: str(value) for key, value in metadata.items() if isinstance(value, (str, int, float))}
    return tuple(caption.strip() for caption in captions if caption.strip()), columns


def _metadata_captions(metadata: Any) -> list[str]:
    """Returns the captions in metadata. Raises ValueError if they are not text, or the metadata not an object."""
    if not isinstance(metadata, dict):
        raise ValueError(f"a {type(metadata).__name__}, expected an object")
    value = metadata.get("captions", metadata.get("caption")) or []
    captions = value if isinstance(value, list) else [value]
    if not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"{value!r} as caption, expected text")
    return captions
