"""Aspect buckets: pictures go to the size that is most like them in shape, so that little is cut off.

Each batch is of one size.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import SupportsIndex

import ml_collections
import numpy as np

from imagen_jax.data.record import BrokenRecord, Record, Source
from imagen_jax.data.transforms import size_in
from imagen_jax.images.array import Size, said, size_of


def bucket_sizes(config: ml_collections.ConfigDict) -> list[Size]:
    """The sizes that a config's ``data`` names beside ``image_size``; none where the pictures of a source are ready.

    Raises UsageError for what is no size.
    """
    return [size_of(size, "config.data.buckets") for size in config.buckets] if "buckets" in config else []


class Bucket:
    """The records of a source that go to one size, as a source."""

    def __init__(self, source: Source, indices: np.ndarray, size: Size) -> None:
        self._source, self._indices, self.size = source, indices, size

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: SupportsIndex) -> Record:
        return self._source[int(self._indices[operator.index(index)])]

    def captions(self, index: SupportsIndex) -> tuple[str, ...]:
        """The captions of record ``index``."""
        return self._source.captions(int(self._indices[operator.index(index)]))

    def __repr__(self) -> str:
        return f"{self._source!r} at {said(self.size)}"


def in_buckets(source: Source, sizes: Sequence[Size], threads: int) -> list[Bucket]:
    """The records of a source by the size that is nearest to their picture's aspect; the empty buckets left out.

    Every record is read once, and of its picture no more than the header. One that cannot be read goes to the first
    size, where it is found broken.
    """
    aspects = np.log([height / width for height, width in sizes])

    def nearest(index: int) -> int:
        try:
            image, _, name, _ = source[index]
            height, width = size_in(image, name) if isinstance(image, bytes) else image.shape[:2]
        except BrokenRecord:
            return 0
        return int(np.argmin(np.abs(aspects - np.log(height / width))))

    with ThreadPoolExecutor(threads) as pool:
        places = np.fromiter(pool.map(nearest, range(len(source))), int, len(source))
    buckets = [Bucket(source, np.flatnonzero(places == place), size) for place, size in enumerate(sizes)]
    return [bucket for bucket in buckets if len(bucket)]
