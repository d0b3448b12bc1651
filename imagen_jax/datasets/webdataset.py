"""Tar shards of images with captions, as written by WebDataset and img2dataset, with random access.

`000012.jpg` (or another suffix of images) is an image; `000012.txt` and `000012.json` describe it. The members of an
example need not be adjacent. An index of the positions of all members is built once from the headers of each shard, and
saved (see `tar_index.py`). Nothing is unpacked, unpickled or run.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, SupportsIndex

import numpy as np
from tqdm import tqdm

from imagen_jax.data.captions import clean_captions, json_captions, json_columns, parse_json, split_captions
from imagen_jax.data.encodings import EncodingError, decode_text
from imagen_jax.data.left_out import LeftOut
from imagen_jax.data.record import CorruptRecordError, Record
from imagen_jax.datasets import tar, tar_index
from imagen_jax.datasets.folder_findings import note_one_text
from imagen_jax.datasets.tar_index import IMAGE, METADATA, TEXT
from imagen_jax.errors import ConfigError
from imagen_jax.io import storage

_THREADS = 8  # that index shards
_NAMES = 3  # of images without a caption
_TEXTS = 16  # of a shard that may be read at the start


class WebDatasetSource:
    """The examples of shards, in order, with random access.

    Args:
        names: tar files, with ranges such as `{00000..00099}` or `*` and `?` in their names, or folders of tar files.
        caption_files: whether a caption is a line of a text or the "whole" text, see `split_captions`.

    Raises:
        ConfigError: a name is not a file, a shard is missing, damaged or truncated, or there are no examples.
    """

    def __init__(self, names: str | Sequence[str], caption_files: str = "lines") -> None:
        self._caption_files = caption_files
        self.left_out = LeftOut()
        self.shards = tar_index.expand_shards(names, self.left_out)
        with ThreadPoolExecutor(_THREADS) as pool:
            loaded = pool.map(tar_index.load_index, self.shards)
            indices = list(tqdm(loaded, desc="shards", total=len(self.shards), delay=2.0, mininterval=1.0, leave=False))
        self._extents = [index.extents for index in indices]
        self._starts = np.cumsum([0, *map(len, self._extents)])  # index of each shard's first example, and the length
        self.left_out.merge((index.left_out for index in indices), place=self._place)
        if not len(self):
            unused = "".join(f"; {message}" for message in self.left_out.messages())
            raise ConfigError(f"{self!r} has no image: a shard needs members such as 000012.jpg and 000012.txt{unused}")
        self._note_captions()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: SupportsIndex) -> Record:
        shard, extents = self._locate(index)
        name, image = _read_member(shard, extents[IMAGE])
        captions, columns = self._read_description(shard, extents)
        return Record(image, captions, f"{shard}/{name}", columns)

    def captions(self, index: SupportsIndex) -> tuple[str, ...]:
        """Returns the captions of record `index` without reading its image."""
        return self._read_description(*self._locate(index))[0]

    def columns(self, index: SupportsIndex) -> Mapping[str, str]:
        """Returns the columns of record `index` without reading its image."""
        return self._read_description(*self._locate(index))[1]

    def _locate(self, index: SupportsIndex) -> tuple[str, np.ndarray]:
        """Returns the shard of record `index`, and its extents there [3, 2]."""
        i = operator.index(index)
        if not 0 <= i < len(self):
            raise IndexError(f"index {i} is outside [0, {len(self)}) of {self!r}")
        shard = int(np.searchsorted(self._starts, i, side="right")) - 1
        return self.shards[shard], self._extents[shard][i - self._starts[shard]]

    @property
    def _place(self) -> str:
        return f"{self.shards[0]}{' … ' + self.shards[-1] if len(self.shards) > 1 else ''}"

    def _note_captions(self) -> None:
        """Counts in `left_out` the images without a text or metadata; notes if the texts look like one caption each."""
        texts = []
        for shard, extents in zip(self.shards, self._extents, strict=True):
            without = extents[np.all(extents[:, (TEXT, METADATA), 1] == 0, axis=1), IMAGE]
            names = (f"{shard}/{_member_name(shard, extent)}" for extent in without[:_NAMES])
            reason = f"they are examples without text, of {len(self):,} images"
            self.left_out.add(self._place, "image(s) without a caption", reason, names, len(without))
            texts += [(shard, extent) for extent in extents[extents[:, TEXT, 1] > 0, TEXT][:_TEXTS]]
        if self._caption_files == "lines":
            note_one_text(texts, _read_text, self._place, self.left_out)

    def _read_description(self, shard: str, extents: np.ndarray) -> tuple[tuple[str, ...], dict[str, str]]:
        """Returns (captions, columns) of the example at extents [3, 2] of a shard.

        The captions are those of its text; without a text, or with a blank one, they are `captions` or `caption` of its
        metadata. The columns are the numbers and strings of the metadata.

        Raises:
            CorruptRecordError: the text is in another encoding, or the metadata are not a JSON object.
        """
        metadata: dict[str, Any] = {}
        captions: tuple[str, ...] = ()
        if extents[METADATA, 1]:
            name, data = _read_member(shard, extents[METADATA])
            try:
                metadata = parse_json(data)
                captions = clean_captions(json_captions(metadata))
            except EncodingError as error:
                raise CorruptRecordError(f"{shard}/{name}", str(error)) from error
            except (ValueError, RecursionError) as error:
                raise CorruptRecordError(f"{shard}/{name}", f"is not valid JSON metadata: {error}") from error
        if extents[TEXT, 1]:
            name, text = _read_text((shard, extents[TEXT]))
            captions = split_captions(text, self._caption_files, lambda text: text.split("\n")) or captions
        return captions, json_columns(metadata)

    def __repr__(self) -> str:
        return f"WebDatasetSource({self._place})"


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


def _read_text(member: tuple[str, np.ndarray]) -> tuple[str, str]:
    """Returns (name, text) of the member at (shard, extent)."""
    shard, extent = member
    name, data = _read_member(shard, extent)
    try:
        return f"{shard}/{name}", decode_text(data)
    except EncodingError as error:
        raise CorruptRecordError(f"{shard}/{name}", str(error)) from error


def _member_name(shard: str, extent: np.ndarray) -> str:
    """Returns the name of the member at an extent; its data is not read. The shard may have changed: then it is "?"."""
    try:
        member = tar.parse_member(tar_index.windowed_reader(shard), int(extent[0]) * tar.BLOCK)
    except (OSError, tar.TarError):
        member = None
    return member.name if member else "?"
