"""From a source's records to examples: pictures of one size and type, with their captions."""

from __future__ import annotations

import operator
from typing import NamedTuple, SupportsIndex

import numpy as np

from imagen_jax.data.corrupt import Broken
from imagen_jax.data.record import BrokenRecord, Record, Source
from imagen_jax.data.transforms import Transform
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import DTYPES

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
            raise ConfigError(f"{source!r} is empty: there is nothing to train on")
        self.broken = broken or Broken(repr(source), len(source), max_share=0.0)
        image = self[0].image
        found = image.shape[-1]
        if found != channels:
            raise ConfigError(
                f"images of {source!r} have {found} channels, config.channels is {channels}: set it to {found}"
            )
        if image.dtype not in DTYPES.values():
            raise ConfigError(f"images of {source!r} are {image.dtype}: a source gives uint8 or uint16")

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
        raise ConfigError(
            f"config.data has no transform, which image files, such as {record.name}, need: copy that of "
            "configs/folder_base.py"
        )
    return transform.decode(record.image, record.name)


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
