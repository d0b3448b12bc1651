"""The captions that training a stage reads, those of previews included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from imagen_jax.config.schema import StageConfig
from imagen_jax.data.dataset import first_caption
from imagen_jax.data.record import CorruptRecordError, Source
from imagen_jax.datasets.registry import make_source


class SourceCaptions:
    """The captions of all examples of several sources, one source after the other. Images are not read."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def __len__(self) -> int:
        return sum(map(len, self._sources))

    def __getitem__(self, index: int) -> tuple[str, ...]:
        for source in self._sources:
            if index < len(source):
                try:
                    return source.captions(index)
                except CorruptRecordError:
                    return ()  # another record is read in its place
            index -= len(source)
        raise IndexError(f"index is outside the captions of {len(self)} examples")


class FirstCaptions(Sequence[str]):
    """The first caption of each of `count` examples, read when it is asked for; begins again after the last example.

    Args:
        captions: of all examples.
        count: length of the sequence.
    """

    def __init__(self, captions: SourceCaptions, count: int) -> None:
        self._captions, self._count = captions, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not 0 <= index < self._count:
            raise IndexError(f"{index} is outside {self._count} captions")
        return first_caption(self._captions[index % len(self._captions)])


def training_captions(config: StageConfig, training: Sequence[Source] = ()) -> SourceCaptions:
    """Returns the captions of both splits of a stage's config.

    Previews read the validation split, and any of its examples may replace a corrupt one.

    Args:
        config: config of a stage.
        training: the sources of the training split, if they are open already: listing a large folder takes time.

    Raises:
        ConfigError: a source cannot be opened, see `make_source`.
    """
    splits = dict.fromkeys((config.data.split, config.data.validation_split))
    if training:
        del splits[config.data.split]
    return SourceCaptions([*training, *(make_source(config.data, split, config.image_hw) for split in splits)])
