"""Features on which metrics are compared."""

from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
GOLDEN = HERE / "golden.json"
TOLERANCE = 1e-6  # relative
# Where a covariance is singular, roots of rounding errors are a part of their result, most of all of scipy's
SINGULAR = {"fid": 1e-7, "fid_scipy": 1e-3}
WIDTH = 24
CASES = {"usual": (90, 70), "near": (90, 90), "fewer than dimensions": (20, 15), "one of rank 1": (90, 60)}
SINGULAR_CASES = ("fewer than dimensions", "one of rank 1")
KID = {"subsets": 7, "subset_size": 12}
SPLITS = 4


def features(name):
    """Returns two sets float64 [N, D], which are positive and correlated, as those of Inception-v3."""
    rng = np.random.default_rng(list(CASES).index(name))
    count, other = CASES[name]
    mixing = rng.standard_normal((WIDTH, WIDTH))
    first = np.maximum(rng.standard_normal((count, WIDTH)) @ mixing, 0)
    second = np.maximum(rng.standard_normal((other, WIDTH)) @ (mixing + 0.3) + 0.5, 0)
    if name == "near":
        second = first + 1e-3 * rng.standard_normal(first.shape)
    if name == "one of rank 1":
        second = np.outer(rng.standard_normal(other), second[0])
    return first, second


def logits():
    """Returns logits float64 [N, K], a few of them far from the others."""
    rng = np.random.default_rng(9)
    return rng.standard_normal((50, 11)) * rng.uniform(0.1, 9, (50, 1))


def tolerance(case, metric):
    """Returns the relative difference that is tolerated."""
    return SINGULAR.get(metric, TOLERANCE) if case in SINGULAR_CASES else TOLERANCE
