"""The captions that a stage's training reads: those of all its examples, and of those that previews show."""

from __future__ import annotations

from collections.abc import Sequence

import ml_collections

from imagen_jax.data.records import BrokenRecord, Source
from imagen_jax.data.sources import make_source


class Captions:
    """The captions of the first examples of some sources, one source after the other; pictures are not touched.

    Args:
        parts: sources, each with how many of its examples count.
    """

    def __init__(self, parts: Sequence[tuple[Source, int]]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(count for _, count in self._parts)

    def __getitem__(self, index: int) -> tuple[str, ...]:
        for source, count in self._parts:
            if index < count:
                try:
                    return source.captions(index)
                except BrokenRecord:
                    return ()  # another is read in its place
            index -= count
        raise IndexError(f"there are captions of {len(self)} examples")


def training_captions(config: ml_collections.ConfigDict) -> Captions:
    """The captions that training the stage of a config reads. Raises UsageError as ``make_source``."""
    examples = make_source(config.data, config.data.split, config.image_size)
    shown = make_source(config.data, config.data.validation_split, config.image_size)
    return Captions([(examples, len(examples)), (shown, min(config.training.preview_count, len(shown)))])
