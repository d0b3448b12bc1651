"""What is kept of features while images come: moments, and a sample of bounded size.

Each state is updated batch by batch, merged with those of other parts of the images, and saved by `state_files`. The
result is that of one pass over all images.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.features import check_features, format_images
from imagen_jax.evaluation.frechet import Gaussian

logger = logging.getLogger(__name__)

# FID, KID and their relatives are usually of 50,000 images: such a sample has all of them
CAPACITY = 50_000
_SLACK = 8  # a sample is cut back when it is larger by the capacity divided by this


class FeatureMoments:
    """Number, mean and co-moment of features, in float64; D² numbers, whatever the number of images.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        self.images = 0
        self._mean, self._comoment = np.zeros(width), np.zeros((width, width))

    def update(self, first: int, features: np.ndarray) -> None:
        """Adds features float [B, D] of a batch; `first` is the index of its first image, for messages.

        Raises:
            ConfigError: they have other dimensions, or are not finite.
        """
        check_features(features, least=0, first=first)
        _check_width(features, len(self._mean))
        batch = FeatureMoments(0)
        batch.images = len(features)
        if batch.images:
            batch._mean = features.mean(axis=0, dtype=np.float64)
            centered = features - batch._mean
            batch._comoment = centered.T @ centered
            self.merge(batch)

    def merge(self, other: FeatureMoments) -> None:
        """Adds the images of another part (Chan, Golub and LeVeque, 1979). Raises ConfigError for other dimensions."""
        _check_width(other._mean[None], len(self._mean))
        if not other.images:
            return
        images = self.images + other.images
        difference = other._mean - self._mean
        self._comoment += other._comoment
        self._comoment += np.outer(difference, difference * (self.images * other.images / images))
        self._mean += difference * (other.images / images)
        self.images = images

    def gaussian(self) -> Gaussian:
        """Returns mean and covariance; logs a warning for fewer images than the covariance needs for its full rank.

        Raises:
            ConfigError: there are fewer than 2 images.
        """
        width = len(self._mean)
        if self.images < 2:
            raise ConfigError(
                f"{format_images(self.images)} {'has' if self.images == 1 else 'have'} no covariance: give at least 2, "
                f"and for a Frechet distance that means something more than {width:,}"
            )
        if self.images <= width:
            logger.warning(
                "%s are fewer than the %s that a covariance of %s dimensions needs: a Frechet distance of them is "
                "computed, and is far too large",
                format_images(self.images),
                f"{width + 1:,}",
                f"{width:,}",
            )
        return Gaussian(self._mean.copy(), self._comoment / (self.images - 1))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the state, exactly."""
        return {"images": np.array(self.images), "mean": self._mean, "comoment": self._comoment}

    def load_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the state by that of `to_arrays`. Raises ValueError for that of other dimensions."""
        mean, comoment = arrays["mean"], arrays["comoment"]
        if mean.shape != self._mean.shape or comoment.shape != self._comoment.shape:
            raise ValueError("moments of other dimensions")
        self.images, self._mean, self._comoment = int(arrays["images"]), mean, comoment


class FeatureSample:
    """Features of all images until there are more than `capacity`, and then of a random sample of them.

    Which images are in the sample depends on the seed and on their indices alone: those with the least hash stay. So
    the order of batches makes no difference, nor how images are split over hosts.

    Args:
        width: D.
        capacity: the most images that are kept, 4 · D bytes each, and for a moment twice that.
        seed: of the hash.
    """

    def __init__(self, width: int, capacity: int = CAPACITY, seed: int = 0) -> None:
        if capacity < 1:
            raise ConfigError(f"capacity {capacity} is not at least 1")
        self.images, self.capacity, self._width, self._seed = 0, capacity, width, seed
        self._indices, self._parts = [np.zeros(0, np.int64)], [np.zeros((0, width), np.float32)]
        self._limit = np.uint64(2**64 - 1)  # no greater hash can be in the sample

    @property
    def is_exact(self) -> bool:
        """Whether the sample has all images."""
        return self.images <= self.capacity

    def update(self, first: int, features: np.ndarray) -> None:
        """Adds features float [B, D] of images `first`, `first` + 1, …; they are kept in float32.

        Raises:
            ConfigError: they have other dimensions, are not finite, or are of images that are in the sample already.
        """
        check_features(features, least=0, first=first)
        _check_width(features, self._width)
        self._add(np.arange(first, first + len(features)), features.astype(np.float32), len(features))

    def merge(self, other: FeatureSample) -> None:
        """Adds the images of another part. Raises ConfigError if it has other arguments, or some of the same images."""
        if (other._width, other.capacity, other._seed) != (self._width, self.capacity, self._seed):
            raise ConfigError("samples of features of other dimensions, capacities or seeds cannot be merged")
        other._cut()
        self._add(other._indices[0], other._parts[0], other.images)

    def _add(self, indices: np.ndarray, features: np.ndarray, images: int) -> None:
        self.images += images
        candidates = _hash(indices, self._seed) <= self._limit
        self._indices.append(indices[candidates])
        self._parts.append(features[candidates])
        if sum(map(len, self._indices)) > self.capacity + self.capacity // _SLACK:
            self._cut()

    def _cut(self) -> None:
        """Joins the parts, and leaves out what is beyond the capacity. Raises ConfigError."""
        indices = np.concatenate(self._indices)
        hashes = _hash(indices, self._seed)
        kept = np.argsort(hashes)[: self.capacity]
        if (np.diff(hashes[kept]) == 0).any():
            raise ConfigError("an image is in the sample of features twice: give each image once")
        if len(kept) == self.capacity:
            self._limit = hashes[kept[-1]]
        kept = np.sort(kept)
        self._indices, self._parts = [indices[kept]], [self._rows(kept)]

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        """Returns ascending rows of the parts as one array; joined first, all would be in memory once more."""
        result = np.empty((len(rows), self._width), np.float32)
        start = 0
        for part in self._parts:
            first, last = np.searchsorted(rows, (start, start + len(part)))
            # only with this mode nothing is buffered
            np.take(part, rows[first:last] - start, axis=0, out=result[first:last], mode="clip")
            start += len(part)
        return result

    def features(self) -> np.ndarray:
        """Returns the features float32 [N, D], N ≤ capacity, in the order of the images. Raises ConfigError."""
        self._sort()
        return self._parts[0]

    def _sort(self) -> None:
        """Cuts back, and sorts by index. Raises ConfigError."""
        self._cut()
        indices = self._indices[0]
        if (np.diff(indices) < 0).any():
            order = np.argsort(indices)
            self._indices, self._parts = [indices[order]], [self._parts[0][order]]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the state, exactly."""
        self._sort()
        return {"images": np.array(self.images), "indices": self._indices[0], "features": self._parts[0]}

    def load_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the state by that of `to_arrays`. Raises ValueError for that of other dimensions or capacity."""
        indices, features = arrays["indices"], arrays["features"]
        if features.shape != (len(indices), self._width) or len(indices) > self.capacity:
            raise ValueError("a sample of other dimensions, or of another capacity")
        self.images = int(arrays["images"])
        self._indices, self._parts = [indices], [features]
        self._limit = np.uint64(2**64 - 1)
        self._cut()


def _hash(indices: np.ndarray, seed: int) -> np.ndarray:
    """Returns uint64 [N], different for different indices, as if random (SplitMix64, Steele et al., 2014)."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    offset = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    mixed = indices.astype(np.uint64) * golden + offset
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def _check_width(features: np.ndarray, width: int) -> None:
    if features.shape[1] != width:
        raise ConfigError(
            f"features have {features.shape[1]} dimensions, and those before {width}: give features of one network"
        )
