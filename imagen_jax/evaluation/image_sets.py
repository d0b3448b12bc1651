"""Sets of images to measure, of a folder or of a config's data: read batch by batch, so that any number fits memory."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np

from imagen_jax.config.data_schema import DataConfig, TransformConfig
from imagen_jax.data.dataset import first_caption
from imagen_jax.data.record import CorruptRecordError
from imagen_jax.data.transforms import Transform, read_size
from imagen_jax.datasets.folder import FolderSource
from imagen_jax.datasets.from_config import make_examples
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size, alpha_composite, format_height_width, to_uint8
from imagen_jax.io.bucket import is_bucket
from imagen_jax.io.paths import as_path

_THREADS = 8  # that read images at the same time
_WHITE = 255

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Images [H, W, C] of any sizes with their texts, and the index of the first one."""

    first: int
    images: list[np.ndarray]
    texts: list[str]


class ImageSet(Protocol):
    """Random access to images and their texts."""

    @property
    def name(self) -> str:
        """What they are, for figures."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[np.ndarray, str]:
        """Returns an image, uint8 [H, W, C] with 1 or 3 channels, and its text. Raises ConfigError."""

    def identity(self) -> dict[str, Any]:
        """Returns what decides the images, as far as it is known without reading them, as JSON."""


class FolderImages:
    """The images of a folder, nested to any depth, sorted by path; local or in a bucket.

    Transparent ones are composited on white, and colors are converted to sRGB.

    Args:
        path: the folder.
        count: of images, the first ones; 0 for all.
        size: (height, width) that they are cut at their center and resized to, (0, 0) for none.
        texts: of the images, in their order; None for those beside them.
        flag: that has given the folder, for messages.

    Raises:
        ConfigError: it is not a folder, or has fewer images.
    """

    def __init__(
        self,
        path: str,
        count: int = 0,
        size: Size = (0, 0),
        texts: Sequence[str] | None = None,
        flag: str = "--images",
    ) -> None:
        if not is_bucket(path) and not as_path(path).is_dir():
            raise ConfigError(f"{flag} {path!r} is not a folder: give a folder of images")
        self.name, self._size, self._texts = path, size, texts
        self._source = FolderSource(path, "all", 0.0, "text")
        if count > len(self._source):
            raise ConfigError(
                f"{flag} {path!r} has {len(self._source):,} images, and {count:,} are asked for: give more"
            )
        self._count = count or len(self._source)
        self._sizes: set[Size] = set()

    def __len__(self) -> int:
        return self._count

    @property
    def files(self) -> list[str]:
        """The paths of the images in the folder."""
        return list(self._source.file_sizes())[: self._count]

    def text(self, index: int) -> str:
        """Returns the text of an image, empty if it has none."""
        return first_caption(self._source.captions(index)) if self._texts is None else self._texts[index]

    def read(self, index: int) -> tuple[np.ndarray, str]:
        """Returns an image uint8 [H, W, 3] and its text, empty if it has none. Raises ConfigError if it is damaged."""
        try:
            record = self._source[index]
            assert isinstance(record.image, bytes)
            size = self._size if any(self._size) else read_size(record.image, record.name)
            transform = _transform(size)
            image = transform.fit(transform.decode(record.image, record.name))
        except CorruptRecordError as error:
            raise ConfigError(
                f"{self.name}/{error.name} cannot be measured ({error.reason}): replace it, or remove it"
            ) from error
        self._sizes.add(size)
        return image, first_caption(record.captions) if self._texts is None else self._texts[index]

    def identity(self) -> dict[str, Any]:
        """Returns the name, the number of images, their size, a hash of their files' names and sizes, and of texts."""
        listing = {"files": self._source.file_sizes(), "texts": self._texts and list(self._texts)}
        digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:32]
        return {"name": self.name, "count": self._count, "size": list(self._size), "listing": digest}

    def warn_sizes(self) -> None:
        """Logs that the images that were read have several sizes, if they do."""
        if len(self._sizes) > 1:
            low, high = min(self._sizes, key=np.prod), max(self._sizes, key=np.prod)
            logger.warning(
                "images of %s have %s sizes, from %s to %s: each is resized by itself, without cutting it to a square; "
                "give --size=256 to cut and resize them first",
                self.name,
                f"{len(self._sizes):,}",
                format_height_width(low),
                format_height_width(high),
            )


class DataImages:
    """The first images of a config's data, as they are trained on: real ones.

    Args:
        config: the `data` group.
        split: of the source.
        size: (height, width) of the images.
        channels: of the images.
        count: of images, at most.

    Raises:
        ConfigError: as `make_examples`.
    """

    def __init__(self, config: DataConfig, split: str, size: Size, channels: int, count: int) -> None:
        self._examples = make_examples(config, split, size, channels)
        self._count = min(count, len(self._examples))
        self._config = config.to_dict()
        self.name = f"{data_name(config, split)}, {format_height_width(size)}"

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> tuple[np.ndarray, str]:
        """Returns an image uint8 [H, W, C], without alpha, and its first caption."""
        example = self._examples[index]
        return without_alpha(self._examples.fit(example.image)), first_caption(example.captions)

    def identity(self) -> dict[str, Any]:
        """Returns the name, the number of images, and the config."""
        return {"name": self.name, "count": self._count, "data": json.loads(json.dumps(self._config))}


def data_name(config: DataConfig, split: str) -> str:
    """Returns the name of a split of a config's data, for figures."""
    return f"{getattr(config, 'path', '') or config.source}, split {split}"


def without_alpha(images: np.ndarray) -> np.ndarray:
    """Returns images [..., C] as uint8; those with alpha are composited on white."""
    images = to_uint8(images)
    return alpha_composite(images, _WHITE) if images.shape[-1] == 4 else images


def iter_batches(images: ImageSet, start: int, batch_size: int) -> Iterator[Batch]:
    """Yields batches from an index on; images of a batch, and the next batch, are read at the same time."""
    firsts = range(start, len(images), batch_size)
    with ThreadPoolExecutor(_THREADS) as threads:
        # two batches are in memory: the one that is measured, and the one that is read
        pending = [threads.submit(images.read, index) for index in _indices(firsts, 0, len(images), batch_size)]
        for number, first in enumerate(firsts):
            current = [future.result() for future in pending]
            pending = [
                threads.submit(images.read, index) for index in _indices(firsts, number + 1, len(images), batch_size)
            ]
            yield Batch(first, [image for image, _ in current], [text for _, text in current])


def _indices(firsts: range, number: int, count: int, batch_size: int) -> range:
    """Returns the indices of the images of a batch; none after the last one."""
    return range(firsts[number], min(firsts[number] + batch_size, count)) if number < len(firsts) else range(0)


@functools.lru_cache(1024)
def _transform(size: Size) -> Transform:
    """Returns the transform to a size, as of data by default; images that are smaller are enlarged."""
    settings = TransformConfig(upscale=True).to_dict()
    return Transform(size=size, channels=3, bits=8, **settings)
