"""The data set that a config's `data` describes: its source, with its transform and buckets."""

from __future__ import annotations

from imagen_jax.config.data_schema import DataConfig, FileKeys
from imagen_jax.data.buckets import split_into_buckets
from imagen_jax.data.corrupt import CorruptRecords
from imagen_jax.data.dataset import ImageTextDataset
from imagen_jax.data.shuffle import OrderedSource
from imagen_jax.data.transforms import Transform
from imagen_jax.datasets.registry import make_source
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size, parse_size


def make_examples(
    config: DataConfig, split: str, image_size: int | Size, channels: int, objects: bool = False
) -> ImageTextDataset:
    """Returns a split of a config's data set, at one image size.

    Args:
        config: the `data` group of a config.
        split: of the source.
        image_size: (height, width), or one number for a square.
        channels: of the images.
        objects: whether examples have maps of their objects.

    Raises:
        ConfigError: the source cannot be opened, its images do not fit, or it has no objects.
    """
    source = make_source(config, split, image_size)
    transform = make_transform(config, image_size, channels)
    if transform is None or not isinstance(config, FileKeys):
        return ImageTextDataset(source, channels, crop_size=config.crop_hw, objects=objects)
    corrupt = CorruptRecords(repr(source), len(source), config.max_corrupt)
    return ImageTextDataset(source, channels, transform, corrupt, config.crop_hw, objects)


def make_transform(config: DataConfig, image_size: int | Size, channels: int) -> Transform | None:
    """Returns the transform of a config's data; None for sources whose images are decoded already."""
    if not isinstance(config, FileKeys):
        return None
    size = parse_size(image_size, "image_size")
    return Transform(size=size, channels=channels, bits=config.bits, **config.transform.to_dict())


def make_buckets(
    config: DataConfig, split: str, image_size: int | Size, channels: int, objects: bool = False
) -> list[ImageTextDataset]:
    """Returns a split of a config's data set as one data set for each size: `image_size` and those of `data.buckets`.

    Each record goes to the size whose aspect ratio is nearest to its own. Arguments as for `make_examples`.

    Raises:
        ConfigError: as `make_examples`, or the source has an order of its own, which buckets would not keep.
    """
    others = config.bucket_hws
    if not others or not isinstance(config, FileKeys):
        return [make_examples(config, split, image_size, channels, objects)]
    source = make_source(config, split, image_size)
    if isinstance(source, OrderedSource):
        raise ConfigError(f"data.buckets {others} go with no mixture and no balance, as {source!r} has: set it to ()")
    sizes = [parse_size(image_size, "image_size"), *others]
    corrupt = CorruptRecords(repr(source), len(source), config.max_corrupt)
    return [
        ImageTextDataset(bucket, channels, make_transform(config, bucket.size, channels), corrupt, objects=objects)
        for bucket in split_into_buckets(source, sizes, config.threads)
    ]
