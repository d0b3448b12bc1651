"""References, which images are compared with: other images, measured once and kept in a file, or statistics of them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from imagen_jax.config.data_schema import DataConfig
from imagen_jax.config.metrics_schema import MetricsConfig
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.figures import ReferenceOrigin
from imagen_jax.evaluation.image_sets import DataImages, FolderImages, ImageSet, iter_batches
from imagen_jax.evaluation.metric_set import METRICS, MetricSet, MetricStream, Reference
from imagen_jax.evaluation.statistics_files import read_statistics
from imagen_jax.images.array import Size
from imagen_jax.io.atomic import sha256_file
from imagen_jax.io.checksums import json_digest
from imagen_jax.io.paths import as_path
from imagen_jax.parallel import multihost

STATISTICS = ".npz"
BATCH_SIZE = 64
_CHECKSUM_LENGTH = 32
_SAVING = 1 / 20  # the share of time that is spent on saving states, at most


class SaveClock:
    """Says when states are saved: so seldom that it takes a twentieth of the time, as their files are large."""

    def __init__(self) -> None:
        self._saved, self._cost = time.monotonic(), 0.0

    def save(self, save: Callable[[], None], now: bool = False) -> bool:
        """Saves if it is due, or `now`; returns whether it has."""
        start = time.monotonic()
        if not now and start - self._saved < self._cost / _SAVING:
            return False
        save()
        self._saved = time.monotonic()
        self._cost = self._saved - start
        return True


def is_statistics(path: str) -> bool:
    """Returns whether a reference is a file of statistics, by its name."""
    return path.lower().endswith(STATISTICS)


def read_reference(metrics: MetricSet, path: str) -> Reference:
    """Returns a reference of the statistics in a .npz file, see `read_statistics`.

    Raises:
        ConfigError: the file is missing, damaged or of another network or resizing, or a metric needs images.
    """
    for name in metrics.names:
        if METRICS[name].is_compared and METRICS[name].name != "fid":
            raise ConfigError(
                f"{name} compares with single images, and the reference {path!r} has their mean and covariance alone: "
                f"give a folder of images, or leave {name} out"
            )
    statistics = {}
    for network in dict.fromkeys(METRICS[name].network for name in metrics.names if METRICS[name].is_compared):
        encoder = metrics.networks[network].encoder
        assert encoder is not None
        statistics[network] = read_statistics(path, encoder.network, encoder.resizing, encoder.width)
    checksum = sha256_file(as_path(path))[:_CHECKSUM_LENGTH]
    num_images = next((part.images for part in statistics.values()), 0)
    return Reference(ReferenceOrigin(path, checksum, num_images), statistics=statistics)


class DataReference(NamedTuple):
    """Real images of a config's data as a reference, see `DataImages`; `num_images` if no other number is asked for."""

    config: DataConfig
    split: str
    size: Size
    channels: int
    num_images: int


def open_reference(metrics: MetricSet, config: MetricsConfig, data: DataReference) -> Reference | ImageSet:
    """Returns the reference that a config names: statistics, or images to measure by `measure_reference`.

    Args:
        metrics: which, with their networks.
        config: with the reference, and its number of images.
        data: what it is where none is given.

    Raises:
        ConfigError: it is not a reference, is of another network, or has too few images.
    """
    if is_statistics(config.reference):
        return read_reference(metrics, config.reference)
    count = config.num_reference
    if config.reference:
        return FolderImages(config.reference, count, config.size_hw, flag="--reference")
    images = DataImages(data.config, data.split, data.size, data.channels, count or data.num_images)
    if count > len(images):
        raise ConfigError(
            f"{images.name} has {len(images):,} images, and metrics.num_reference is {count:,}: lower it, or set it to "
            "0 for all"
        )
    return images


def measure_reference(metrics: MetricSet, images: ImageSet, folder: Path | None = None) -> Reference:
    """Returns a reference of images, which are measured unless that was done before.

    All processes of a run call it; the main one reads and writes the file.

    Args:
        metrics: which, with their networks.
        images: real ones.
        folder: where the states are kept, in a file that is named after what they are of, and from which an unfinished
            one is continued; None for nowhere.

    Raises:
        ConfigError: there are too few images, or one is damaged.
    """
    stream = metrics.reference_stream(len(images))
    file = None if folder is None else folder / reference_name(stream, images)
    measure(stream, images, file, description="measuring the reference")
    return Reference(ReferenceOrigin(images.name, stream.origin.checksum, len(images)), stream)


def reference_name(stream: MetricStream, images: ImageSet) -> str:
    """Returns the name of the file that the states of a reference are in."""
    return f"reference-{json_digest({'metrics': stream.identity(), 'images': images.identity()})[:16]}{STATISTICS}"


def measure(
    stream: MetricStream,
    images: ImageSet,
    file: Path | None = None,
    batch_size: int = BATCH_SIZE,
    description: str = "measuring",
) -> None:
    """Measures images until the stream is complete, with a progress bar.

    All processes of a run call it, and read all images; the devices of all share the networks' work.

    Args:
        stream: to update.
        images: as many as it has.
        file: its states, read if there are any and written every now and then by the main process; None for none.
        batch_size: images at once.
        description: of the progress bar.

    Raises:
        ConfigError: an image is damaged, or features are not finite.
    """
    identity, clock, is_main = images.identity(), SaveClock(), multihost.is_main_process()
    if file is not None and is_main:
        stream.load(file, identity)
    pending = multihost.broadcast_from_main(np.arange(len(images)) >= stream.images)
    start, hidden = int(len(images) - pending.sum()), not is_main
    save = functools.partial(_save, stream, file, identity)
    with tqdm(total=len(images), initial=start, desc=description, unit=" images", disable=hidden) as bar:
        for batch in iter_batches(images, start, batch_size):
            stream.update(batch.first, batch.images, batch.texts)
            bar.update(len(batch.images))
            if is_main:
                clock.save(save, now=batch.first + len(batch.images) == len(images))
    if isinstance(images, FolderImages) and is_main:
        images.warn_sizes()


def _save(stream: MetricStream, file: Path | None, identity: dict[str, Any]) -> None:
    if file is not None:
        stream.save(file, identity)
