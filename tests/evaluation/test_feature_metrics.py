import json
import math

import numpy as np
import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.clip_score import ClipScore
from imagen_jax.evaluation.frechet import Gaussian, frechet_distance
from imagen_jax.evaluation.inception_score import InceptionScore, inception_score
from imagen_jax.evaluation.kernel_distances import cmmd, kernel_distance
from imagen_jax.evaluation.precision_recall import precision_recall
from tests.goldens.metrics import cases

RNG = np.random.default_rng(0)


def gaussian(features):
    return Gaussian(features.mean(0), np.cov(features, rowvar=False))


def ours(name):
    sets = cases.features(name)
    distance = frechet_distance(*map(gaussian, sets))
    return {
        "fid": distance,
        "fid_scipy": distance,
        "kid": kernel_distance(*sets, **cases.KID),
        "precision_recall": precision_recall(*sets),
    }


@pytest.mark.parametrize("name", cases.CASES)
def test_metrics_match_torch_fidelity_and_scipy(name):
    for metric, expected in json.loads(cases.GOLDEN.read_text())[name].items():
        np.testing.assert_allclose(ours(name)[metric], expected, rtol=cases.tolerance(name, metric), err_msg=metric)


def test_inception_score_matches_torch_fidelity():
    expected = json.loads(cases.GOLDEN.read_text())["inception_score"]
    np.testing.assert_allclose(inception_score(cases.logits(), cases.SPLITS), expected, rtol=cases.TOLERANCE)


def test_frechet_distance_of_known_gaussians():
    variances = RNG.uniform(0.1, 3, (2, 6))
    basis, _ = np.linalg.qr(RNG.standard_normal((6, 6)))
    means = RNG.standard_normal((2, 6))
    given = [Gaussian(mean, basis * var @ basis.T) for mean, var in zip(means, variances, strict=True)]
    expected = ((means[0] - means[1]) ** 2).sum() + ((variances[0] ** 0.5 - variances[1] ** 0.5) ** 2).sum()
    assert math.isclose(frechet_distance(*given), expected, rel_tol=1e-12)
    assert math.isclose(frechet_distance(*given[::-1]), expected, rel_tol=1e-12)
    assert frechet_distance(given[0], given[0]) < 1e-12


def test_singular_covariances_need_no_offset():
    """Of v vᵀ and C, the trace of the root is (vᵀ C v)^½; of nothing, 0."""
    wide = RNG.standard_normal((6, 6))
    v, covariance, zero = RNG.standard_normal(6), wide @ wide.T, np.zeros(6)
    expected = v @ v + np.trace(covariance) - 2 * np.sqrt(v @ covariance @ v)
    distance = frechet_distance(Gaussian(zero, np.outer(v, v)), Gaussian(zero, covariance))
    assert math.isclose(distance, expected, rel_tol=1e-12)
    nothing = Gaussian(zero, np.zeros((6, 6)))
    assert math.isclose(frechet_distance(nothing, Gaussian(zero, covariance)), np.trace(covariance))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda mean, cov: (mean[:3], cov[:3, :3]), "4 and 3 dimensions"),
        (lambda mean, cov: (mean, cov[:3]), r"covariance \[3, 4\]"),
        (lambda mean, cov: (mean * np.nan, cov), "not finite"),
        (lambda mean, cov: (mean, -cov), "not symmetric and positive"),
        (lambda mean, cov: (mean, cov + np.triu(np.ones((4, 4)), 1)), "not symmetric and positive"),
    ],
)
def test_what_is_no_gaussian_is_refused(change, match):
    given = Gaussian(np.zeros(4), np.eye(4))
    with pytest.raises(ConfigError, match=match):
        frechet_distance(given, Gaussian(*change(*given)))


def test_kernel_distance_is_unbiased():
    """Its mean over subsets of one distribution is about 0, with few images as well as with many."""
    features = RNG.standard_normal((2, 400, 5))
    mean, std = kernel_distance(*features, subsets=200, subset_size=10)
    assert abs(mean) < 4 * std / math.sqrt(200) + 0.05
    assert kernel_distance(features[0], features[1] + 1, 20, 10).mean > 10 * abs(mean)


def test_subsets_follow_the_seed():
    sets = cases.features("usual")
    assert kernel_distance(*sets, **cases.KID) == kernel_distance(*sets, **cases.KID)
    assert kernel_distance(*sets, **cases.KID, seed=1) != kernel_distance(*sets, **cases.KID)


def test_cmmd_is_its_definition(monkeypatch):
    x, y = RNG.standard_normal((2, 9, 4))
    pairs = {"xx": (x, x), "yy": (y[:7], y[:7]), "xy": (x, y[:7])}
    k = {
        name: np.mean([[np.exp(-((a - b) ** 2).sum() / 200) for b in second] for a in first])
        for name, (first, second) in pairs.items()
    }
    expected = 1000 * (k["xx"] + k["yy"] - 2 * k["xy"])
    assert math.isclose(cmmd(x, y[:7]), expected, rel_tol=1e-9)
    monkeypatch.setattr("imagen_jax.evaluation.kernel_distances._BLOCK", 2)
    assert math.isclose(cmmd(x, y[:7]), expected, rel_tol=1e-9)
    assert cmmd(x, x) < 1e-9


def test_precision_and_recall_of_parts(monkeypatch):
    """Of two clusters, images that show one are all near real ones, and half of the real ones have none near."""
    real = np.concatenate([RNG.uniform(0, 1, (40, 3)), RNG.uniform(100, 101, (40, 3))])
    images = real[:40] + 1e-3
    assert precision_recall(images, real) == (1.0, 0.5)
    assert precision_recall(real, images) == (0.5, 1.0)
    expected = precision_recall(*cases.features("usual"))
    monkeypatch.setattr("imagen_jax.evaluation.kernel_distances._BLOCK", 7)
    assert precision_recall(*cases.features("usual")) == expected
    shifted = [features + 1e5 for features in cases.features("usual")]
    assert precision_recall(*shifted) == expected


def test_equal_images_are_near_each_other():
    images = np.repeat(RNG.standard_normal((3, 8)), 5, axis=0)
    assert precision_recall(images, images[::5].repeat(4, axis=0)) == (1.0, 1.0)


def test_inception_score_of_known_images():
    """Of K classes, all equally often and surely, it is K; of images of which nothing is known, 1."""
    sure = np.tile(50 * np.eye(5), (8, 1))
    assert math.isclose(inception_score(sure, splits=1).mean, 5, rel_tol=1e-9)
    assert math.isclose(inception_score(np.ones((8, 5)), splits=2).mean, 1, rel_tol=1e-12)


@pytest.mark.parametrize("kind", ["cosine", "torchmetrics", "clip_s", "gigagan"])
def test_clip_score_is_its_definition(kind):
    images, texts = (vectors.astype(np.float32) for vectors in RNG.standard_normal((2, 20, 6)))
    cosines = np.array([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(images, texts, strict=True)])
    scores = {
        "cosine": cosines,
        "torchmetrics": 100 * cosines,
        "clip_s": 2.5 * np.maximum(cosines, 0),
        "gigagan": cosines,
    }[kind]
    parts = [ClipScore(kind), ClipScore(kind)]
    for start in (0, 3, 4):
        end = {0: 3, 3: 4, 4: 20}[start]
        parts[start == 3].update(start, images[start:end], texts[start:end])
    parts[0].merge(parts[1])
    mean, error, count = parts[0].result()
    assert count == 20
    assert math.isclose(mean, max(scores.mean(), 0) if kind == "torchmetrics" else scores.mean(), rel_tol=1e-6)
    assert math.isclose(error, scores.std(ddof=1) / math.sqrt(20), rel_tol=1e-6)
    prefix = "A photo depicts " if kind in ("clip_s", "gigagan") else ""
    assert ClipScore(kind).prompts(["a dog"]) == [f"{prefix}a dog"]


def test_bad_features_are_refused():
    features = RNG.standard_normal((12, 4))
    damaged = features.copy()
    damaged[5, 2] = np.nan
    score = InceptionScore(12, 3)
    score.update(0, features[:6])
    for call, match in (
        (lambda: kernel_distance(features, damaged, subset_size=5), "reference of 1 image are not finite.*image 5"),
        (lambda: kernel_distance(features, features, subset_size=13), "12 images, fewer than subset_size 13"),
        (lambda: kernel_distance(features[:1], features, subset_size=5), "of 1 image, and at least 2"),
        (lambda: kernel_distance(features, features[:, :2], subset_size=5), "4 dimensions"),
        (lambda: precision_recall(features[:3], features), "of 3 images, and at least 4"),
        (lambda: cmmd(features, damaged), "not finite"),
        (lambda: cmmd(features, np.zeros((3, 4), int)), r"int64 \[3, 4\]"),
        (lambda: inception_score(features[:2]), "2 images cannot have 10 splits"),
        (lambda: score.update(5, features[:2]), "in it already"),
        (lambda: score.update(11, features[:2]), "beyond the 12"),
        (lambda: score.update(6, features[:2, :3]), "3 classes"),
        (lambda: score.result(), "6 of 12"),
        (lambda: score.merge(score), "same images"),
        (lambda: score.merge(InceptionScore(12, 3, seed=1)), "seeds"),
        (lambda: ClipScore("best"), "CLIP score 'best'"),
        (lambda: ClipScore().result(), "no images"),
        (lambda: ClipScore().update(7, damaged, features), "first is image 12"),
        (lambda: ClipScore().update(0, features[:3], features), r"\[3, 4\]"),
        (lambda: ClipScore().merge(ClipScore("clip_s")), "different kinds"),
    ):
        with pytest.raises(ConfigError, match=match):
            call()
