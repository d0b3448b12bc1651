"""The captions that training a stage reads, those of previews included."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import overload

from tqdm import tqdm

from imagen_jax.config.data_schema import DataConfig, FileKeys
from imagen_jax.config.schema import StageConfig
from imagen_jax.data.dataset import first_caption
from imagen_jax.data.left_out import left_out_of
from imagen_jax.data.record import CorruptRecordError, Source
from imagen_jax.datasets.registry import make_source
from imagen_jax.errors import ConfigError

logger = logging.getLogger(__name__)

_ALLOW = "captions are read from where docs/data.md says; to train without text, --config.data.allow_no_captions=True"

# examples that are looked at for a caption, spread over a source: first few, one by one, then most
_FEW, _MOST = 64, 100_000
_AT_ONCE = 256
_THREADS = 16  # that look
_MAX_NAMED = 3


def check_captions(config: DataConfig, sources: Sequence[Source]) -> None:
    """Checks that one of the sources has a caption, unless a config allows that they have none.

    Raises:
        ConfigError: no example looked at has one: text would be learned in vain.
    """
    if isinstance(config, FileKeys) and not config.allow_no_captions:
        reasons = [no_captions_reason(source) for source in sources]
        if all(reasons):
            raise ConfigError(f"{reasons[0]}; {_ALLOW}")


def no_captions_reason(source: Source) -> str:
    """Returns why no text can be learned from a source, with what to do; "" if an example has a caption.

    Examples are read evenly spread over the source, up to the first that has one: usually a single example is read.
    """
    count = len(source)
    unreadable: dict[str, str] = {}
    has_caption = functools.partial(_has_caption, source, unreadable)
    if any(map(has_caption, _spread(count, _FEW))):
        return ""
    indices = _spread(count, _MOST)
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        tqdm(desc="looking for captions", total=len(indices), delay=2.0, leave=False) as bar,
    ):
        for start in range(0, len(indices), _AT_ONCE):
            if any(pool.map(has_caption, indices[start : start + _AT_ONCE])):
                return ""
            bar.update(_AT_ONCE)
    looked = f"{count:,}" if len(indices) == count else f"{len(indices):,} looked at of {count:,}"
    problem = f"none of the {looked} examples of {source!r} has a caption"
    if unreadable:
        problem += f" that can be read ({len(unreadable):,} cannot, such as {_name_some(unreadable)})"
    return "; ".join([problem, *_caption_hints(source)])


def _spread(count: int, limit: int) -> Sequence[int]:
    """Returns the integers below `count`, or `limit` of them, evenly spread."""
    return range(count) if count <= limit else [i * count // limit for i in range(limit)]


def _has_caption(source: Source, unreadable: dict[str, str], index: int) -> bool:
    try:
        return any(caption.strip() for caption in source.captions(index))
    except CorruptRecordError as corrupt:
        unreadable[corrupt.name] = corrupt.reason
        return False


def _caption_hints(source: Source) -> list[str]:
    """Returns what of the things that a source does not use may be captions."""
    return [
        f"{finding.count:,} {finding.what}, such as {finding.names[0]!r}: {finding.reason}"
        for finding in left_out_of(source).findings
        if finding.names and not finding.what.startswith("image") and "caption" in finding.what + finding.reason
    ]


def _name_some(unreadable: dict[str, str]) -> str:
    return "; ".join(f"{name}: {unreadable[name]}" for name in list(unreadable)[:_MAX_NAMED])


class SourceCaptions:
    """The captions of all examples of several sources, one source after the other. Images are not read.

    Attributes:
        sources: the sources.
        unreadable: reasons by name of the captions that could not be read so far; their examples count as having none.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.unreadable: dict[str, str] = {}

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def __getitem__(self, index: int) -> tuple[str, ...]:
        for source in self.sources:
            if index < len(source):
                try:
                    return source.captions(index)
                except CorruptRecordError as corrupt:
                    self.unreadable[corrupt.name] = corrupt.reason
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


def warn_unreadable(captions: SourceCaptions) -> None:
    """Logs the captions that could not be read so far."""
    if captions.unreadable:
        some = _name_some(captions.unreadable)
        logger.warning(
            "the captions of %s example(s) cannot be read, such as %s", f"{len(captions.unreadable):,}", some
        )


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
