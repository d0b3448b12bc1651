"""Features of images, float [N, D], as metrics take them: checked before anything is computed."""

from __future__ import annotations

import numpy as np

from imagen_jax.errors import ConfigError


def check_features(features: np.ndarray, name: str = "features", least: int = 1, first: int = 0) -> None:
    """Checks features.

    Args:
        features: [N, D].
        name: of the argument, for messages.
        least: the number of images that a metric needs.
        first: the index of the first image, for messages.

    Raises:
        ConfigError: they have another shape, are not floats, are of too few images, or are not all finite.
    """
    if not isinstance(features, np.ndarray) or features.ndim != 2 or not np.issubdtype(features.dtype, np.floating):
        shown = f"{features.dtype} {list(features.shape)}" if hasattr(features, "shape") else type(features).__name__
        raise ConfigError(f"{name} are {shown}, expected an array of floats [images, dimensions]")
    if len(features) < least:
        raise ConfigError(f"{name} are of {format_images(len(features))}, and at least {least} are needed: give more")
    damaged = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if damaged.size:
        raise ConfigError(
            f"{name} of {format_images(damaged.size)} are not finite, the first is image {first + damaged[0]}: look at "
            "the image, and check the weights of the network"
        )


def check_widths(features: np.ndarray, reference: np.ndarray) -> None:
    """Raises ConfigError unless features [N, D] and reference [M, D] have equally many dimensions."""
    if features.shape[1] != reference.shape[1]:
        raise ConfigError(
            f"features have {features.shape[1]} dimensions, and those of the reference {reference.shape[1]}: give "
            "features of one network"
        )


def format_images(count: int) -> str:
    """Returns a number of images for messages."""
    return "1 image" if count == 1 else f"{count:,} images"
