"""Scans records one by one: each is read and decoded as in training, and statistics of it are kept."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from imagen_jax.data.dataset import decode_image
from imagen_jax.data.record import CorruptRecordError, Record, Source
from imagen_jax.data.transforms import Transform, read_size
from imagen_jax.images.array import Size
from imagen_jax.inspection.near_duplicates import fingerprint


class RecordStats(NamedTuple):
    """Statistics of one record.

    Attributes:
        record_index: index in the source.
        name: path or key.
        reason: why it cannot be read, "" if it can.
        captions: all its captions.
        columns: its metadata.
        size: upright (height, width) of the stored image; None if unknown.
        fingerprint: see `near_duplicates.py`; empty if the image cannot be read.
        seconds: time of one core for reading and decoding.
    """

    record_index: int
    name: str
    reason: str
    captions: tuple[str, ...]
    columns: Mapping[str, str]
    size: Size | None
    fingerprint: bytes
    seconds: float


def scan(source: Source, transform: Transform | None, indices: Sequence[int], threads: int) -> list[RecordStats]:
    """Returns the statistics of records, in the order of `indices`, with a progress bar.

    Args:
        source: the records.
        transform: decodes image files; None for a source of decoded images.
        indices: the records to scan.
        threads: how many threads read records.

    Raises:
        ConfigError: the source has image files, and there is no transform.
    """
    with ThreadPoolExecutor(threads) as pool:
        records = pool.map(lambda index: _scan_record(source, transform, index), indices)
        return list(tqdm(records, desc="records", total=len(indices), unit=" records", mininterval=1.0))


def _scan_record(source: Source, transform: Transform | None, index: int) -> RecordStats:
    start = time.thread_time()
    try:
        record = source[index]
    except CorruptRecordError as corrupt:
        return RecordStats(index, corrupt.name, corrupt.reason, (), {}, None, b"", 0.0)
    seconds = time.thread_time() - start
    stats = RecordStats(index, record.name, "", record.captions, record.columns, _stored_size(record), b"", 0.0)
    start = time.thread_time()
    try:
        image = decode_image(record, transform)
    except CorruptRecordError as corrupt:
        return stats._replace(reason=corrupt.reason)
    seconds += time.thread_time() - start
    return stats._replace(seconds=seconds, fingerprint=fingerprint(image))


def _stored_size(record: Record) -> Size | None:
    """Returns the upright (height, width) of a record's image, from the header of its file; None if unreadable."""
    if not isinstance(record.image, bytes):
        return record.image.shape[0], record.image.shape[1]
    try:
        return read_size(record.image, record.name)
    except CorruptRecordError:
        return None


def load_images(source: Source, transform: Transform | None, records: Sequence[RecordStats]) -> np.ndarray:
    """Returns the images [N, H, W, C] of readable records as in training, but without random crops and flips."""
    images = [decode_image(source[record.record_index], transform) for record in records]
    return np.stack(images if transform is None else [transform.fit(image) for image in images])
