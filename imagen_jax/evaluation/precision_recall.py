"""Precision and recall of features by nearest neighbors (arXiv:1904.06991)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.features import check_features, check_widths
from imagen_jax.evaluation.kernel_distances import blocks, squared_distances

NEIGHBORS = 3


class PrecisionRecall(NamedTuple):
    """Precision: the share of images that are near real ones. Recall: the share of real images that have some near."""

    precision: float
    recall: float


def precision_recall(features: np.ndarray, reference: np.ndarray, neighbors: int = NEIGHBORS) -> PrecisionRecall:
    """Returns precision and recall, Eq. 1 and 2 of arXiv:1904.06991, exactly over all pairs.

    An image is near another set if it is within the distance from any of its images to that image's k-th nearest
    neighbor in its own set, itself not counted. Both numbers depend on the numbers of images: compare those of equally
    many; the paper has 50,000 of each.

    Args:
        features: of the images that are measured [N, D].
        reference: of real images [M, D].
        neighbors: k, less than N and M.

    Raises:
        ConfigError: there are too few images, or features are not finite.
    """
    if neighbors < 1:
        raise ConfigError(f"neighbors {neighbors} is not at least 1")
    check_features(features, least=neighbors + 1)
    check_features(reference, "features of the reference", least=neighbors + 1)
    check_widths(features, reference)
    # differences of distances are lost by rounding if all features are far from 0
    center = reference.mean(axis=0, dtype=np.float64)
    features, reference = features - center, reference - center
    return PrecisionRecall(
        precision=_share_near(features, reference, neighbors), recall=_share_near(reference, features, neighbors)
    )


def _share_near(queries: np.ndarray, others: np.ndarray, neighbors: int) -> float:
    """Returns the share of queries [N, D] that are within the radius of any of the others [M, D]."""
    radii = _squared_radii(others, neighbors)
    near = 0
    for query in blocks(queries):
        is_near, start = np.zeros(len(query), bool), 0
        for other in blocks(others):
            within = squared_distances(query, other) <= radii[start : start + len(other)]
            is_near |= within.any(axis=1)
            start += len(other)
        near += int(is_near.sum())
    return near / len(queries)


def _squared_radii(features: np.ndarray, neighbors: int) -> np.ndarray:
    """Returns the squared distance [N] of each to its k-th nearest neighbor; it is itself the nearest of k + 1."""
    radii = []
    for block in blocks(features):
        nearest = np.full((len(block), neighbors + 1), np.inf)
        for other in blocks(features):
            joined = np.concatenate([nearest, squared_distances(block, other)], axis=1)
            nearest = np.partition(joined, neighbors, axis=1)[:, : neighbors + 1]
        radii.append(nearest.max(axis=1))
    return np.concatenate(radii)
