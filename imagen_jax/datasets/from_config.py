"""The data set that a config's ``data`` describes: its source, transform and buckets, put together."""

from __future__ import annotations

from imagen_jax.config.schema import DataConfig, FileKeys
from imagen_jax.data.buckets import split_into_buckets
from imagen_jax.data.corrupt import CorruptRecords
from imagen_jax.data.dataset import ImageTextDataset
from imagen_jax.data.shuffle import OrderedSource
from imagen_jax.data.transforms import Transform
from imagen_jax.datasets.registry import make_source
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size, size_of


def make_examples(config: DataConfig, split: str, image_size: int | Size, channels: int) -> ImageTextDataset:
    """The examples of a split of the source that a config's ``data`` names. Raises UsageError as it and they do.

    Configs of sources whose pictures are ready as they are have no ``transform`` and no ``max_broken``.
    """
    source = make_source(config, split, image_size)
    transform = make_transform(config, image_size, channels)
    if transform is None or not isinstance(config, FileKeys):
        return ImageTextDataset(source, channels)
    return ImageTextDataset(source, channels, transform, CorruptRecords(repr(source), len(source), config.max_corrupt))


def make_transform(config: DataConfig, image_size: int | Size, channels: int) -> Transform | None:
    """The transform that a config's ``data`` describes, if pictures are not ready as they are. Raises UsageError."""
    if not isinstance(config, FileKeys):
        return None
    size = size_of(image_size, "image_size")
    return Transform(size=size, channels=channels, bits=config.bits, **config.transform.to_dict())


def make_buckets(config: DataConfig, split: str, image_size: int | Size, channels: int) -> list[ImageTextDataset]:
    """As ``make_examples``, but those that are more like a size of ``data.buckets`` apart, at that size.

    Raises UsageError also for a source that has an order of its own, which buckets would not keep.
    """
    others = config.bucket_hws
    if not others or not isinstance(config, FileKeys):
        return [make_examples(config, split, image_size, channels)]
    source = make_source(config, split, image_size)
    if isinstance(source, OrderedSource):
        raise ConfigError(f"data.buckets {others} go with no mixture and no balance, as {source!r} has: set it to ()")
    sizes = [size_of(image_size, "image_size"), *others]
    broken = CorruptRecords(repr(source), len(source), config.max_corrupt)
    return [
        ImageTextDataset(bucket, channels, make_transform(config, bucket.size, channels), broken)
        for bucket in split_into_buckets(source, sizes, config.threads)
    ]
