"""A look at records one by one: each is read and decoded as training would, and what matters of it is kept."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from imagen_jax.data.dataset import decoded
from imagen_jax.data.record import BrokenRecord, Record, Source
from imagen_jax.data.transforms import Transform, size_in
from imagen_jax.images.array import Size
from imagen_jax.inspection.near_duplicates import fingerprint


class Look(NamedTuple):
    """What there was to see of one record.

    place: its index in the source
    name: its path or key
    reason: why it cannot be read, "" if it can
    captions: all that it has
    columns: of its metadata
    size: (height, width) of the picture as it is stored, upright; None if that is not known
    fingerprint: of the picture, see ``duplicates``; empty if it cannot be read
    seconds: of one core, that reading and decoding took
    """

    place: int
    name: str
    reason: str
    captions: tuple[str, ...]
    columns: Mapping[str, str]
    size: Size | None
    fingerprint: bytes
    seconds: float


def survey(source: Source, transform: Transform | None, indices: Sequence[int], threads: int) -> list[Look]:
    """A look at each of these records, in their order, with a progress bar."""

    def look(index: int) -> Look:
        return look_at(source, transform, index)

    with ThreadPoolExecutor(threads) as pool:
        looks = pool.map(look, indices)
        return list(tqdm(looks, desc="records", total=len(indices), unit=" records", mininterval=1.0))


def look_at(source: Source, transform: Transform | None, index: int) -> Look:
    """A look at record ``index``. Raises UsageError if no transform says what becomes of image files."""
    start = time.thread_time()
    try:
        record = source[index]
    except BrokenRecord as broken:
        return Look(index, broken.name, broken.reason, (), {}, None, b"", 0.0)
    seconds = time.thread_time() - start
    seen = Look(index, record.name, "", record.captions, record.columns, stored_size(record), b"", 0.0)
    start = time.thread_time()
    try:
        image = decoded(record, transform)
    except BrokenRecord as broken:
        return seen._replace(reason=broken.reason)
    seconds += time.thread_time() - start
    return seen._replace(seconds=seconds, fingerprint=fingerprint(image))


def stored_size(record: Record) -> Size | None:
    """(height, width) of a record's picture, upright, from the header of its file; None if that cannot be read."""
    if not isinstance(record.image, bytes):
        return record.image.shape[0], record.image.shape[1]
    try:
        return size_in(record.image, record.name)
    except BrokenRecord:
        return None


def pictures(source: Source, transform: Transform | None, looks: Sequence[Look]) -> np.ndarray:
    """The pictures [N, H, W, C] of records that could be read, as training sees them without chance."""
    images = [decoded(source[look.place], transform) for look in looks]
    return np.stack(images if transform is None else [transform.fit(image) for image in images])
