"""The inception score (arXiv:1606.03498), image by image, exactly."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.features import check_features, format_images
from imagen_jax.evaluation.kernel_distances import SEED, MeanStd

SPLITS = 10


class InceptionScore:
    """exp E[KL(p(y|x) | p(y))] over splits of a number of images that is known from the start.

    The split of an image follows from its index, as torch-fidelity shuffles, so that sums of each split are enough: the
    state has splits × classes numbers, and a bit for each image.

    Args:
        num_images: of all.
        splits: number of splits, at most `num_images`.
        seed: of the shuffle, from 0 to 2**32 - 1.

    Raises:
        ConfigError: there are fewer images than splits.
    """

    def __init__(self, num_images: int, splits: int = SPLITS, seed: int = SEED) -> None:
        if not 1 <= splits <= num_images:
            raise ConfigError(
                f"an inception score of {format_images(num_images)} cannot have {splits} splits: give more images, or "
                "fewer splits"
            )
        bounds = [split * num_images // splits for split in range(splits + 1)]
        self._split = np.empty(num_images, np.int64)
        self._split[np.random.RandomState(seed).permutation(num_images)] = np.repeat(np.arange(splits), np.diff(bounds))
        self._seen = np.zeros(num_images, bool)
        self._entropies = np.zeros(splits)  # sums of p log p
        self._probabilities = np.zeros((splits, 0))  # sums of p, for each class

    @property
    def images(self) -> int:
        """The number of images so far."""
        return int(self._seen.sum())

    def update(self, first: int, logits: np.ndarray) -> None:
        """Adds logits float [B, K] of images `first`, `first` + 1, …

        Raises:
            ConfigError: logits are not finite, or images are beyond `num_images` or there already.
        """
        check_features(logits, "logits", first=first)
        images = slice(first, first + len(logits))
        if first < 0 or images.stop > len(self._split) or self._seen[images].any():
            raise ConfigError(
                f"images {first} to {images.stop - 1} are beyond the {len(self._split)} of this inception score, or in "
                "it already: give each image once"
            )
        log_p = logits.astype(np.float64)
        log_p -= log_p.max(axis=1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        split, sums = self._split[images], self._classes(logits.shape[1])
        self._seen[images] = True
        np.add.at(self._entropies, split, (p * log_p).sum(axis=1))
        np.add.at(sums, split, p)

    def _classes(self, count: int) -> np.ndarray:
        """Returns the sums of probabilities, for so many classes. Raises ConfigError if there were others before."""
        if not self._probabilities.shape[1]:
            self._probabilities = np.zeros((len(self._entropies), count))
        if self._probabilities.shape[1] != count:
            raise ConfigError(f"logits have {count} classes, and those before {self._probabilities.shape[1]}")
        return self._probabilities

    def merge(self, other: InceptionScore) -> None:
        """Adds the images of another part. Raises ConfigError if it is of other splits or has the same images."""
        if not np.array_equal(self._split, other._split):
            raise ConfigError("inception scores of other numbers of images, splits or seeds cannot be merged")
        if (self._seen & other._seen).any():
            raise ConfigError("inception scores of the same images cannot be merged: give each image to one part")
        if other.images:
            self._classes(other._probabilities.shape[1])
            self._seen |= other._seen
            self._entropies += other._entropies
            self._probabilities += other._probabilities

    def result(self) -> MeanStd:
        """Returns mean and deviation of the score over the splits. Raises ConfigError if images are missing."""
        if self.images != len(self._split):
            raise ConfigError(f"the inception score has {self.images} of {len(self._split)} images: add the others")
        counts = np.bincount(self._split)
        mean = self._probabilities / counts[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):  # a class that no image has
            entropy = np.where(mean > 0, mean * np.log(mean), 0).sum(axis=1)
        scores = np.exp(self._entropies / counts - entropy)
        return MeanStd(float(scores.mean()), float(scores.std()))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the state, exactly."""
        return {"seen": self._seen, "entropies": self._entropies, "probabilities": self._probabilities}

    def load_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the state by that of `to_arrays`, from a score of the same arguments. Raises ValueError."""
        seen, entropies, sums = (arrays[name] for name in ("seen", "entropies", "probabilities"))
        if seen.shape != self._seen.shape or entropies.shape != self._entropies.shape or sums.ndim != 2:
            raise ValueError("sums of other splits")
        self._seen, self._entropies, self._probabilities = seen, entropies, sums


def inception_score(logits: np.ndarray, splits: int = SPLITS, seed: int = SEED) -> MeanStd:
    """Returns the inception score of logits float [N, K], see `InceptionScore`. Raises ConfigError."""
    check_features(logits, "logits")
    score = InceptionScore(len(logits), splits, seed)
    score.update(0, logits)
    return score.result()
