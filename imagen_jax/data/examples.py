"""From a source's records to examples: pictures of one size and type, with their captions."""

from __future__ import annotations

import operator
from typing import NamedTuple, SupportsIndex

import ml_collections
import numpy as np

from imagen_jax.data.broken import Broken
from imagen_jax.data.buckets import bucket_sizes, in_buckets
from imagen_jax.data.orders import Ordered
from imagen_jax.data.records import BrokenRecord, Record, Source
from imagen_jax.data.sources import make_source
from imagen_jax.data.transforms import Transform
from imagen_jax.errors import UsageError
from imagen_jax.images import DTYPES, Size, size_of

# Where this many others in a row are broken too, next to nothing can be read.
TRIES = 100


class Example(NamedTuple):
    """A picture, uint8 or uint16 [H, W, C], or longer in one direction until ``Examples.fit``; its captions."""

    image: np.ndarray
    captions: tuple[str, ...]


class Examples:
    """Random access to the examples of a source; others stand in for the broken ones.

    Args:
        source: of records.
        channels: of the pictures.
        transform: of image files; a source whose pictures are ready needs none.
        broken: counts the broken records, and says when there are too many; without it one is.

    Raises:
        UsageError: the source is empty, or its pictures have another number of channels or another type, or too many
            of them are broken.
    """

    def __init__(
        self,
        source: Source,
        channels: int,
        transform: Transform | None = None,
        broken: Broken | None = None,
    ) -> None:
        self.source, self._transform = source, transform
        if not len(source):
            raise UsageError(f"{source!r} is empty: there is nothing to train on")
        self.broken = broken or Broken(repr(source), len(source), max_share=0.0)
        image = self[0].image
        found = image.shape[-1]
        if found != channels:
            raise UsageError(
                f"images of {source!r} have {found} channels, config.channels is {channels}: set it to {found}"
            )
        if image.dtype not in DTYPES.values():
            raise UsageError(f"images of {source!r} are {image.dtype}: a source gives uint8 or uint16")

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: SupportsIndex) -> Example:
        """Example ``index``, or in the place of a broken one another that depends on the index alone."""
        try:
            example = self._decoded(index)
        except BrokenRecord as broken:
            self.broken.read(broken)
            return self._instead_of(operator.index(index), broken)
        self.broken.read(None)
        return example

    def name(self, index: SupportsIndex) -> str:
        """What record ``index`` is called, in a log."""
        try:
            return self.source[index].name
        except BrokenRecord as broken:
            return broken.name

    def fit(self, image: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """The part [H, W, C] of an example's picture that is shown; a generator has training's crops and flips."""
        return image if self._transform is None else self._transform.fit(image, rng)

    def _decoded(self, index: SupportsIndex) -> Example:
        record = self.source[index]
        return Example(decoded(record, self._transform), record.captions)

    def _instead_of(self, index: int, broken: BrokenRecord) -> Example:
        # anywhere, not the next: broken files often lie side by side
        others = np.random.default_rng(index).integers(len(self), size=TRIES)
        for other in others:
            try:
                return self._decoded(int(other))
            except BrokenRecord as another:
                self.broken.name(another)
                broken = another
        raise self.broken.too_many(broken)

    def __repr__(self) -> str:
        return repr(self.source)


def decoded(record: Record, transform: Transform | None) -> np.ndarray:
    """The picture of a record. Raises BrokenRecord, and UsageError for an image file that nothing is said of."""
    if not isinstance(record.image, bytes):
        return record.image
    if transform is None:
        raise UsageError(
            f"config.data has no transform, which image files, such as {record.name}, need: copy that of "
            "configs/folder_base.py"
        )
    return transform.decode(record.image, record.name)


def make_examples(config: ml_collections.ConfigDict, split: str, image_size: int | Size, channels: int) -> Examples:
    """The examples of a split of the source that a config's ``data`` names. Raises UsageError as it and they do.

    Configs of sources whose pictures are ready as they are have no ``transform`` and no ``max_broken``.
    """
    source = make_source(config, split, image_size)
    transform = make_transform(config, image_size, channels)
    if transform is None:
        return Examples(source, channels)
    return Examples(source, channels, transform, Broken(repr(source), len(source), config.max_broken))


def make_transform(config: ml_collections.ConfigDict, image_size: int | Size, channels: int) -> Transform | None:
    """The transform that a config's ``data`` describes, if pictures are not ready as they are. Raises UsageError."""
    if "transform" not in config:
        return None
    size = size_of(image_size, "image_size")
    return Transform(size=size, channels=channels, bits=config.bits, **config.transform)


def make_buckets(
    config: ml_collections.ConfigDict, split: str, image_size: int | Size, channels: int
) -> list[Examples]:
    """As ``make_examples``, but those that are more like a size of ``data.buckets`` apart, at that size.

    Raises UsageError also for a source that has an order of its own, which buckets would not keep.
    """
    others = bucket_sizes(config)
    if not others:
        return [make_examples(config, split, image_size, channels)]
    source = make_source(config, split, image_size)
    if isinstance(source, Ordered):
        raise UsageError(
            f"config.data.buckets {tuple(others)} go with no mixture and no balance, as {source!r} has: set it to ()"
        )
    sizes = [size_of(image_size, "image_size"), *others]
    broken = Broken(repr(source), len(source), config.max_broken)
    return [
        Examples(bucket, channels, make_transform(config, bucket.size, channels), broken)
        for bucket in in_buckets(source, sizes, config.threads)
    ]


def first_caption(captions: tuple[str, ...]) -> str:
    """The first of an example's captions; the empty one, which is unconditional, where it has none."""
    return captions[0] if captions else ""


def any_caption(captions: tuple[str, ...], rng: np.random.Generator) -> str:
    """One of an example's captions, each as likely as another; the empty one where it has none."""
    return captions[rng.integers(len(captions))] if len(captions) > 1 else first_caption(captions)


def first_examples(examples: Examples, count: int) -> tuple[np.ndarray, list[str]]:
    """The pictures [N, H, W, C] of the first ``count`` examples, or of all if these are fewer; their first captions."""
    found = [examples[i] for i in range(min(count, len(examples)))]
    images = np.stack([examples.fit(example.image) for example in found])
    return images, [first_caption(example.captions) for example in found]
