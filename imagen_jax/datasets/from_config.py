"""The data set that a config's ``data`` describes: its source, transform and buckets, put together."""

from __future__ import annotations

import ml_collections

from imagen_jax.data.buckets import bucket_sizes, in_buckets
from imagen_jax.data.corrupt import Broken
from imagen_jax.data.dataset import Examples
from imagen_jax.data.shuffle import Ordered
from imagen_jax.data.transforms import Transform
from imagen_jax.datasets.registry import make_source
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size, size_of


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
        raise ConfigError(
            f"config.data.buckets {tuple(others)} go with no mixture and no balance, as {source!r} has: set it to ()"
        )
    sizes = [size_of(image_size, "image_size"), *others]
    broken = Broken(repr(source), len(source), config.max_broken)
    return [
        Examples(bucket, channels, make_transform(config, bucket.size, channels), broken)
        for bucket in in_buckets(source, sizes, config.threads)
    ]
