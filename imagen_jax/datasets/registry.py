"""Data sources by name. Each is random access to records, see `data/record.py`.

To add one, write a module beside `folder.py`, list it here and declare its keys in `config/schema.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from imagen_jax.config.data_schema import (
    DataConfig,
    DigitsKeys,
    FashionMnistKeys,
    FiguresKeys,
    FolderKeys,
    MixtureKeys,
    ParquetKeys,
    PartConfig,
    ShapesKeys,
    TfdsKeys,
    WebDatasetKeys,
)
from imagen_jax.config.paths import map_paths
from imagen_jax.data.left_out import warn_left_out
from imagen_jax.data.record import Source
from imagen_jax.datasets.fashion_mnist import FashionMnistSource
from imagen_jax.datasets.figures.source import FiguresSource
from imagen_jax.datasets.folder import CaptionRules, FolderSource
from imagen_jax.datasets.mixtures import BalancedSource, MixtureSource
from imagen_jax.datasets.parquet import ParquetColumns, ParquetSource
from imagen_jax.datasets.shapes.source import ShapesSource
from imagen_jax.datasets.webdataset import WebDatasetSource
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size
from imagen_jax.io.paths import expand_user


def _shapes(config: ShapesKeys, split: str, image_size: int | Size) -> Source:
    return ShapesSource(
        seed=config.seed,
        split=split,
        resolution=image_size,
        num_examples=config.num_examples,
        bits=config.bits,
        transparent=config.transparent,
    )


def _figures(config: FiguresKeys, split: str, image_size: int | Size) -> Source:
    return FiguresSource(config.seed, split, image_size, config.num_examples, config.bits)


def _digits(config: DigitsKeys, split: str, image_size: int | Size) -> Source:
    # scikit-learn takes seconds to import
    from imagen_jax.datasets.digits import DigitsSource

    return DigitsSource(split=split, image_size=image_size, bits=config.bits)


def _fashion_mnist(config: FashionMnistKeys, split: str, image_size: int | Size) -> Source:
    return FashionMnistSource(config.path, split, image_size, config.bits)


def _folder(config: FolderKeys, split: str, image_size: int | Size) -> Source:
    suffix = config.caption_suffix
    suffixes = (suffix,) if isinstance(suffix, str) else suffix
    captions = CaptionRules(suffixes, config.caption_files, config.captions_from_file_names)
    return FolderSource(
        config.path, split, config.validation_fraction, config.caption_column, captions, config.objects_suffix
    )


def _tfds(config: TfdsKeys, split: str, image_size: int | Size) -> Source:
    # TFDS too
    from imagen_jax.datasets.tfds import TfdsSource

    return TfdsSource(config.path, split, config.image, config.captions, config.templates)


def _webdataset(config: WebDatasetKeys, split: str, image_size: int | Size) -> Source:
    shards = config.shards
    if split not in shards:
        raise ConfigError(f"config.data.shards has no split {split!r}: it has {', '.join(shards) or 'none'}")
    return WebDatasetSource(shards[split], config.caption_files)


def _parquet(config: ParquetKeys, split: str, image_size: int | Size) -> Source:
    columns = ParquetColumns(config.image_column, config.caption_column)
    return ParquetSource(config.path, split, columns, config.validation_fraction, config.cache_dir)


def _mixture(config: MixtureKeys, split: str, image_size: int | Size) -> Source:
    sources = {name: open_source(part, split, image_size) for name, part in config.parts.items()}
    return MixtureSource(sources, {name: part.weight for name, part in config.parts.items()})


SOURCES: dict[str, Callable[[Any, str, int | Size], Source]] = {
    "shapes": _shapes,
    "figures": _figures,
    "digits": _digits,
    "fashion_mnist": _fashion_mnist,
    "folder": _folder,
    "tfds": _tfds,
    "webdataset": _webdataset,
    "parquet": _parquet,
    "mixture": _mixture,
}


def make_source(config: DataConfig | PartConfig, split: str, image_size: int | Size) -> Source:
    """Returns a split of a config's source, and logs what it does not use of its place.

    Args:
        config: the `data` group of a config, or a part of a mixture.
        split: of the source.
        image_size: (height, width), or one number for a square, for sources that render.

    Raises:
        ConfigError: the source cannot be opened, or has no such split.
    """
    source = open_source(config, split, image_size)
    warn_left_out(source)
    return source


def open_source(config: DataConfig | PartConfig, split: str, image_size: int | Size) -> Source:
    """Returns a split of a config's source, as `make_source`, without a word about what it leaves out."""
    try:
        config = map_paths(config, expand_user)
        source = SOURCES[config.source](config, split, image_size)
        if config.balance is None:
            return source
        weights = [(str(value), weight) for value, weight in config.balance.weights]
        return BalancedSource(source, config.balance.column, weights)
    except ValueError as error:
        # a part of a mixture has said so already
        place = "" if str(error).startswith("config.data") else "config.data: "
        raise ConfigError(f"{place}{error}") from error
