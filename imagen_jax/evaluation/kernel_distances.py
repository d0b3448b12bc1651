"""Distances of features by kernels: KID (arXiv:1801.01401) and CMMD (arXiv:2401.09603)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.features import check_features, check_widths, format_images

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000  # of torch-fidelity
SEED = 2020  # likewise
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
_BLOCK = 2048  # rows at once: what is in memory does not grow with the square of the images


class MeanStd(NamedTuple):
    """Mean and standard deviation of a metric, over subsets or splits of the images."""

    mean: float
    std: float


def kernel_distance(
    features: np.ndarray,
    reference: np.ndarray,
    subsets: int = KID_SUBSETS,
    subset_size: int = KID_SUBSET_SIZE,
    seed: int = SEED,
) -> MeanStd:
    """Returns KID: the unbiased MMD² with the kernel (x·y / D + 1)³ (arXiv:1801.01401), averaged over subsets.

    It is unbiased, also for few images, and can be below 0. Subsets are those of torch-fidelity for the same seed.

    Args:
        features: of the images that are measured [N, D].
        reference: of real images [M, D].
        subsets: number of subsets.
        subset_size: images in each, at most N and M.
        seed: of the subsets, from 0 to 2**32 - 1.

    Raises:
        ConfigError: there are fewer images than in a subset, or features are not finite.
    """
    for name, values in (("features", features), ("features of the reference", reference)):
        check_features(values, name, least=2)
        if len(values) < subset_size:
            raise ConfigError(
                f"{name} are of {format_images(len(values))}, fewer than subset_size {subset_size}: give more images, "
                "or a smaller subset_size"
            )
    if subset_size < 2 or subsets < 1:
        raise ConfigError(f"subset_size {subset_size} is not at least 2, or subsets {subsets} not at least 1")
    check_widths(features, reference)
    random, distances = np.random.RandomState(seed), []
    for _ in range(subsets):
        x = features[random.choice(len(features), subset_size, replace=False)].astype(np.float64)
        y = reference[random.choice(len(reference), subset_size, replace=False)].astype(np.float64)
        distances.append(_unbiased_mmd2(x, y))
    return MeanStd(float(np.mean(distances)), float(np.std(distances)))


def _unbiased_mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the unbiased estimate for x and y, both [N, D]."""
    count = len(x)
    among = sum(kernel.sum() - np.trace(kernel) for kernel in (_cubic(x, x), _cubic(y, y)))
    return among / (count * (count - 1)) - 2 * _cubic(x, y).mean()


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def cmmd(features: np.ndarray, reference: np.ndarray, sigma: float = CMMD_SIGMA, scale: float = CMMD_SCALE) -> float:
    """Returns CMMD: the MMD² with a Gaussian kernel (arXiv:2401.09603), over all pairs, times a scale.

    As in the code of its authors, an image and itself are a pair too, so that few images are at some distance from
    others of the same kind: compare numbers of equally many. Their features are unit vectors of CLIP ViT-L/14 at 336
    pixels.

    Args:
        features: of the images that are measured [N, D].
        reference: of real images [M, D].
        sigma: width of the kernel.
        scale: of the result.

    Raises:
        ConfigError: there are no features, or they are not finite.
    """
    check_features(features)
    check_features(reference, "features of the reference")
    check_widths(features, reference)
    among = _mean_gaussian(features, features, sigma) + _mean_gaussian(reference, reference, sigma)
    return scale * (among - 2 * _mean_gaussian(features, reference, sigma))


def _mean_gaussian(x: np.ndarray, y: np.ndarray, sigma: float) -> float:
    """Returns the mean of exp(-|x - y|² / (2 sigma²)) over all pairs."""
    total = sum(np.exp(-squared_distances(a, b) / (2 * sigma**2)).sum() for a in blocks(x) for b in blocks(y))
    return float(total / (len(x) * len(y)))


def blocks(features: np.ndarray) -> Iterator[np.ndarray]:
    """Yields features [N, D] in float64, some rows at a time."""
    for start in range(0, len(features), _BLOCK):
        yield features[start : start + _BLOCK].astype(np.float64)


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns |x - y|² for all pairs of x [N, D] and y [M, D], float64 [N, M]; 0 for equal ones."""
    norms = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)
    squared = norms - 2 * x @ y.T
    # smaller than the rounding error of the difference
    return np.where(squared > 1e-13 * norms, squared, 0.0)
