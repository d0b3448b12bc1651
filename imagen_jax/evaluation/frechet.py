"""The Frechet distance of two Gaussians, and with it of features (FID, arXiv:1706.08500, Eq. 6)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from imagen_jax.errors import ConfigError

# Eigenvalues of a covariance below this part of the greatest, for each dimension, are rounding errors of float64
_EPSILON = float(np.finfo(np.float64).eps)


class Gaussian(NamedTuple):
    """Mean float64 [D] and covariance float64 [D, D] of features; the latter with N - 1 in the denominator."""

    mean: np.ndarray
    covariance: np.ndarray


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Returns |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½), in float64.

    With C1 = A Aᵀ and C2 = B Bᵀ, the trace of the root is the sum of the singular values of Aᵀ B. It is the same number
    as that of scipy's `sqrtm`, which other packages take, but no imaginary parts occur that would be dropped, and
    covariances that are singular, such as those of fewer images than dimensions, need no offset. Directions whose
    variance is no more than a rounding error of the greatest are left out: `sqrtm` takes roots of such errors.

    Args:
        first: mean [D] and covariance [D, D].
        second: likewise; the order makes no difference.

    Raises:
        ConfigError: the dimensions differ, values are not finite, or a matrix is not a covariance.
    """
    if first.mean.shape != second.mean.shape:
        raise ConfigError(
            f"the statistics have {len(first.mean)} and {len(second.mean)} dimensions: give those of one network"
        )
    roots = _root(first) @ _root(second).T
    trace_of_root = np.linalg.svd(roots, compute_uv=False).sum() if roots.size else 0.0
    difference = np.asarray(first.mean, np.float64) - second.mean
    traces = np.trace(first.covariance, dtype=np.float64) + np.trace(second.covariance, dtype=np.float64)
    # equal Gaussians would else be at a distance of minus a rounding error
    return max(0.0, float(difference @ difference + traces - 2 * trace_of_root))


def _root(gaussian: Gaussian) -> np.ndarray:
    """Returns Aᵀ [R, D] with A Aᵀ the covariance, of rank R. Raises ConfigError if it is not one."""
    covariance = np.asarray(gaussian.covariance, np.float64)
    if covariance.shape != (len(gaussian.mean),) * 2:
        raise ConfigError(
            f"the statistics have a mean of {len(gaussian.mean)} dimensions, and a covariance {list(covariance.shape)}"
        )
    if not (np.isfinite(covariance).all() and np.isfinite(gaussian.mean).all()):
        raise ConfigError("the statistics are not finite: compute them again")
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    greatest = np.abs(values).max(initial=0.0)
    scale = np.abs(covariance).max(initial=0.0)
    # statistics in float32, as some files have them, have eigenvalues below 0 by its rounding
    if values.min(initial=0.0) < -1e-4 * greatest or np.abs(covariance - covariance.T).max(initial=0.0) > 1e-4 * scale:
        raise ConfigError("the covariance of the statistics is not symmetric and positive: compute it again")
    is_kept = values > len(values) * _EPSILON * greatest
    return (vectors[:, is_kept] * np.sqrt(values[is_kept])).T
