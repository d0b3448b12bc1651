"""The captions that a stage's training reads: those of its examples, and those that previews may show."""

from __future__ import annotations

from collections.abc import Sequence

import ml_collections

from imagen_jax.data.record import BrokenRecord, Source
from imagen_jax.datasets.registry import make_source


class Captions:
    """The captions of all examples of some sources, one source after the other; pictures are not touched."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def __len__(self) -> int:
        return sum(map(len, self._sources))

    def __getitem__(self, index: int) -> tuple[str, ...]:
        for source in self._sources:
            if index < len(source):
                try:
                    return source.captions(index)
                except BrokenRecord:
                    return ()  # another is read in its place
            index -= len(source)
        raise IndexError(f"there are captions of {len(self)} examples")


def training_captions(config: ml_collections.ConfigDict, training: Sequence[Source] = ()) -> Captions:
    """The captions of both splits of a stage's config: a preview shows any example in the place of a broken one.

    ``training`` are the sources of the training split, if they are open: to list a large folder takes its time. Raises
    UsageError as ``make_source``.
    """
    splits = dict.fromkeys((config.data.split, config.data.validation_split))
    if training:
        del splits[config.data.split]
    return Captions([*training, *(make_source(config.data, split, config.image_size) for split in splits)])
