"""From a source's records to examples: pictures of one size and type, with their captions."""

from __future__ import annotations

from typing import NamedTuple, SupportsIndex

import ml_collections
import numpy as np

from imagen_jax.data.records import Source
from imagen_jax.data.sources import make_source
from imagen_jax.errors import UsageError
from imagen_jax.images import DTYPES, Size


class Example(NamedTuple):
    """A picture, uint8 or uint16 [H, W, C], and its captions."""

    image: np.ndarray
    captions: tuple[str, ...]


class Examples:
    """Random access to the examples of a source.

    Raises:
        UsageError: the source is empty, or its pictures have another number of channels or another type.
    """

    def __init__(self, source: Source, channels: int) -> None:
        self.source = source
        if not len(source):
            raise UsageError(f"{source!r} is empty: there is nothing to train on")
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
        record = self.source[index]
        if isinstance(record.image, bytes):
            raise UsageError(f"{record.name} of {self.source!r} is an encoded image: expected an array")
        return Example(record.image, record.captions)

    def __repr__(self) -> str:
        return repr(self.source)


def make_examples(config: ml_collections.ConfigDict, split: str, image_size: int | Size, channels: int) -> Examples:
    """The examples of a split of the source that a config's ``data`` names. Raises UsageError as it and they do."""
    return Examples(make_source(config, split, image_size), channels)


def first_caption(captions: tuple[str, ...]) -> str:
    """The first of an example's captions; the empty one, which is unconditional, where it has none."""
    return captions[0] if captions else ""


def any_caption(captions: tuple[str, ...], rng: np.random.Generator) -> str:
    """One of an example's captions, each as likely as another; the empty one where it has none."""
    return captions[rng.integers(len(captions))] if len(captions) > 1 else first_caption(captions)


def first_examples(examples: Examples, count: int) -> tuple[np.ndarray, list[str]]:
    """The pictures [N, H, W, C] of the first ``count`` examples, or of all if these are fewer; their first captions."""
    found = [examples[i] for i in range(min(count, len(examples)))]
    return np.stack([example.image for example in found]), [first_caption(example.captions) for example in found]
