"""Tar shards of pictures with captions beside them, as WebDataset and img2dataset write them, by random access.

``000012.jpg`` (or ``.jpeg``, ``.png``, ``.webp``) is a picture; ``000012.txt`` and ``000012.json`` say what it shows.
Members of one example need not stand together. The index says where each member lies: it is made once, from the headers
of each shard, and kept. Nothing is unpacked, unpickled or run.
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

from imagen_jax.data.record import BrokenRecord, Record
from imagen_jax.datasets import tar, tar_index
from imagen_jax.datasets.tar_index import METADATA, PICTURE, TEXT
from imagen_jax.errors import ConfigError
from imagen_jax.io import storage

THREADS = 8  # that index shards


class WebDatasetSource:
    """The examples of shards, in their order, by random access.

    Args:
        names: of tar files, with ranges such as ``{00000..00099}`` in them, or of folders with tar files.

    Raises:
        UsageError: a name that is no file's, a shard that is not there, broken or cut short, no example in any.
    """

    def __init__(self, names: str | Sequence[str]) -> None:
        self.shards = tar_index.shard_names(names)
        with ThreadPoolExecutor(THREADS) as pool:
            made = pool.map(tar_index.shard_index, self.shards)
            indices = list(tqdm(made, desc="shards", total=len(self.shards), delay=2.0, mininterval=1.0, leave=False))
        self._places = [index.places for index in indices]
        self._first = np.cumsum([0, *map(len, self._places)])  # of each shard, and where all end
        self.ignored: tar_index.Ignored = {}
        for index in indices:
            for reason, (count, name) in index.ignored.items():
                tar_index.ignore(self.ignored, reason, name, count)
        for reason, (count, name) in self.ignored.items():
            logging.warning("%r: %d member(s) ignored, such as %r: %s", self, count, name, reason)
        if not len(self):
            raise ConfigError(f"{self!r} has no picture: a shard needs members such as 000012.jpg and 000012.txt")

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: SupportsIndex) -> Record:
        shard, places = self._find(index)
        member, picture = read_member(shard, places[PICTURE], PICTURE)
        captions, columns = described(shard, places)
        return Record(picture, captions, f"{shard}/{member}", columns)

    def captions(self, index: SupportsIndex) -> tuple[str, ...]:
        """The captions of record ``index``; its picture is not read."""
        return described(*self._find(index))[0]

    def columns(self, index: SupportsIndex) -> Mapping[str, str]:
        """The columns of record ``index``; its picture is not read."""
        return described(*self._find(index))[1]

    def _find(self, index: SupportsIndex) -> tuple[str, np.ndarray]:
        """The shard of record ``index``, and its places there, [3, 2]."""
        i = operator.index(index)
        if not 0 <= i < len(self):
            raise IndexError(f"index {i} is outside [0, {len(self)}) of {self!r}")
        shard = int(np.searchsorted(self._first, i, side="right")) - 1
        return self.shards[shard], self._places[shard][i - self._first[shard]]

    def __repr__(self) -> str:
        return f"WebDatasetSource({self.shards[0]}{' … ' + self.shards[-1] if len(self.shards) > 1 else ''})"


def read_member(shard: str, place: np.ndarray, part: int) -> tuple[str, bytes]:
    """(name, bytes) of the member at a place, (block, blocks), of a shard. Raises BrokenRecord if it is not there."""
    first, blocks = (int(number) * tar.BLOCK for number in place)
    where = f"{shard} at byte {first:,}"
    try:
        found = storage.read_part(shard, first, blocks)
        member = tar.member_at(lambda at, count: found[at : at + count], 0)
    except (FileNotFoundError, PermissionError, tar.TarError) as error:
        # whatever else goes wrong, such as a network, may go right another time: that ends the run
        raise BrokenRecord(where, f"cannot be read: {error}") from error
    if member is None or member.end != blocks:
        raise BrokenRecord(where, "is not what the index says: the shard has changed, start anew")
    return member.name, found[member.data : member.data + member.size]


def described(shard: str, places: np.ndarray) -> tuple[tuple[str, ...], dict[str, str]]:
    """(captions, columns) of the example at places [3, 2] of a shard.

    Captions are the lines of its text; without one they are what its metadata have as ``captions`` or ``caption``. The
    columns are the metadata's numbers and strings. Raises BrokenRecord for what is no text and no JSON object.
    """
    metadata, captions = {}, []
    if places[METADATA, 1]:
        name, data = read_member(shard, places[METADATA], METADATA)
        try:
            metadata = json.loads(data)
            captions = captions_of(metadata)
        except (ValueError, RecursionError) as error:
            raise BrokenRecord(f"{shard}/{name}", f"is no JSON of metadata: {error}") from error
    if places[TEXT, 1]:
        name, data = read_member(shard, places[TEXT], TEXT)
        try:
            captions = data.decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise BrokenRecord(f"{shard}/{name}", f"is no text of UTF-8: {error}") from error
    columns = {key: str(value) for key, value in metadata.items() if isinstance(value, (str, int, float))}
    return tuple(caption.strip() for caption in captions if caption.strip()), columns


def captions_of(metadata: Any) -> list[str]:
    """The captions that metadata have. Raises ValueError if they are no text, or the metadata no JSON object."""
    if not isinstance(metadata, dict):
        raise ValueError(f"a {type(metadata).__name__}, where an object was expected")
    said = metadata.get("captions", metadata.get("caption")) or []
    captions = said if isinstance(said, list) else [said]
    if not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"{said!r} as caption, where text was expected")
    return captions
