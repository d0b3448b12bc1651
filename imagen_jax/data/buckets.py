"""Aspect-ratio buckets: each image goes to the size with the nearest aspect ratio, so that little is cropped.

Each batch has a single size.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import SupportsIndex

import numpy as np

from imagen_jax.data.left_out import left_out_of
from imagen_jax.data.record import CorruptRecordError, Record, Source, read_objects
from imagen_jax.data.transforms import read_size
from imagen_jax.images.array import Size, format_size


class BucketSource:
    """A source of the records that belong to one bucket.

    Args:
        source: all records.
        indices: int [N], the records of the bucket.
        size: (height, width) of the bucket.
    """

    def __init__(self, source: Source, indices: np.ndarray, size: Size) -> None:
        self._source, self._indices, self.size = source, indices, size
        self.left_out = left_out_of(source)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: SupportsIndex) -> Record:
        return self._source[int(self._indices[operator.index(index)])]

    def captions(self, index: SupportsIndex) -> tuple[str, ...]:
        """Returns the captions of record `index`."""
        return self._source.captions(int(self._indices[operator.index(index)]))

    def objects(self, index: SupportsIndex) -> bytes | np.ndarray | None:
        """Returns the map of objects of record `index`."""
        return read_objects(self._source, int(self._indices[operator.index(index)]))

    def __repr__(self) -> str:
        return f"{self._source!r} at {format_size(self.size)}"


def split_into_buckets(source: Source, sizes: Sequence[Size], threads: int) -> list[BucketSource]:
    """Splits the records of a source by the size whose aspect ratio is nearest to that of their image.

    Every record is read once, but only the header of its image is parsed. An unreadable record goes to the first size,
    where reading it reports it as corrupt.

    Args:
        source: the records.
        sizes: (height, width) of each bucket.
        threads: how many threads read records.

    Returns:
        The buckets that are not empty, in the order of `sizes`.
    """
    log_aspects = np.log([height / width for height, width in sizes])

    def nearest_bucket(index: int) -> int:
        try:
            image, _, name, _ = source[index]
            height, width = read_size(image, name) if isinstance(image, bytes) else image.shape[:2]
        except CorruptRecordError:
            return 0
        return int(np.argmin(np.abs(log_aspects - np.log(height / width))))

    with ThreadPoolExecutor(threads) as pool:
        assigned = np.fromiter(pool.map(nearest_bucket, range(len(source))), int, len(source))
    buckets = [BucketSource(source, np.flatnonzero(assigned == bucket), size) for bucket, size in enumerate(sizes)]
    return [bucket for bucket in buckets if len(bucket)]
