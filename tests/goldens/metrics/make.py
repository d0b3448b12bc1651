"""Metrics of features by torch-fidelity, and Frechet distances by pytorch-fid's formula with scipy."""

import json
import warnings

import numpy as np
import torch
from scipy import linalg

from imagen_jax.evaluation.frechet import Gaussian, frechet_distance
from imagen_jax.evaluation.inception_score import inception_score
from imagen_jax.evaluation.kernel_distances import kernel_distance
from imagen_jax.evaluation.precision_recall import precision_recall
from tests.goldens.metrics.cases import CASES, GOLDEN, KID, SPLITS, TOLERANCE, features, logits, tolerance
from tests.goldens.torch_fidelity import torch_fidelity


def by_scipy(first, second):
    """Returns the Frechet distance as pytorch-fid and clean-fid compute it."""
    (mean1, cov1), (mean2, cov2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (first, second))
    with warnings.catch_warnings(action="ignore"):
        root = linalg.sqrtm(cov1 @ cov2)
    if not np.isfinite(root).all():
        offset = 1e-6 * np.eye(len(cov1))
        root = linalg.sqrtm((cov1 + offset) @ (cov2 + offset))
    return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root.real))


def theirs():
    """Returns metrics by case."""
    package = torch_fidelity()
    result = {}
    for name in CASES:
        first, second = features(name)
        tensors = torch.from_numpy(first), torch.from_numpy(second)
        kid = package.metric_kid.kid_features_to_metric(
            *tensors, kid_subsets=KID["subsets"], kid_subset_size=KID["subset_size"], verbose=False
        )
        near = package.metric_prc.prc_features_to_metric(*tensors, verbose=False)
        statistics = map(package.metric_fid.fid_features_to_statistics, tensors)
        result[name] = {
            "fid": package.metric_fid.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"],
            "fid_scipy": by_scipy(first, second),
            "kid": list(kid.values()),
            "precision_recall": [near["precision"], near["recall"]],
        }
    score = package.metric_isc.isc_features_to_metric(torch.from_numpy(logits()), SPLITS)
    return result | {"inception_score": list(score.values())}


def ours():
    """Returns the same, by our functions."""
    result = {}
    for name in CASES:
        sets = features(name)
        gaussians = (Gaussian(x.mean(0), np.cov(x, rowvar=False)) for x in sets)
        distance = frechet_distance(*gaussians)
        result[name] = {
            "fid": distance,
            "fid_scipy": distance,
            "kid": list(kernel_distance(*sets, **KID)),
            "precision_recall": list(precision_recall(*sets)),
        }
    return result | {"inception_score": list(inception_score(logits(), SPLITS))}


def write():
    """Writes their metrics to GOLDEN."""
    GOLDEN.write_text(json.dumps(theirs(), indent=2) + "\n")
    print(GOLDEN)


def compare():
    """Prints the largest relative differences, and returns whether all are within the tolerance."""
    expected, mine, passed = theirs(), ours(), []
    print("\nMetrics of random features, relative differences")

    def row(label, value, other, most):
        difference = np.max(np.abs(np.subtract(value, other)) / np.maximum(np.abs(other), 1e-12))
        print(f"{label:64}{difference:10.1e}{most:10.0e}")
        passed.append(difference <= most)

    for name, metrics in expected.items():
        if name == "inception_score":
            row("inception score", mine[name], metrics, TOLERANCE)
            continue
        for metric, value in metrics.items():
            row(f"{metric}, {name}", mine[name][metric], value, tolerance(name, metric))
    return all(passed)
