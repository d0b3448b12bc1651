import logging
from types import SimpleNamespace

import numpy as np
import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.clip_score import ClipScore
from imagen_jax.evaluation.encoder import Features
from imagen_jax.evaluation.frechet import Gaussian, frechet_distance
from imagen_jax.evaluation.image_metrics import METRICS, ImageMetrics, MetricNetworks
from imagen_jax.evaluation.inception_score import inception_score
from imagen_jax.evaluation.kernel_distances import cmmd, kernel_distance
from imagen_jax.evaluation.precision_recall import precision_recall
from imagen_jax.evaluation.statistics_files import Statistics, read_statistics, write_statistics
from tests.goldens.clip import cases as clip_cases

COUNT, SIDE, BATCH = 40, 6, 12
TEXTS = [f"a {color} circle" for color in ("red", "green", "blue", "gray")] * (COUNT // 4)


class LinearEncoder(SimpleNamespace):
    """In the place of a network: features and logits are linear in the pixels."""

    network, resizing, width, suffix = "linear/01", "clean", 5, ""

    def __call__(self, images):
        weights = np.random.default_rng(7).standard_normal((SIDE * SIDE * 3, 9)) / 9
        output = (images.reshape(len(images), -1) / 255 @ weights).astype(np.float32)
        return Features(output[:, :5], output[:, 5:])


def images(seed):
    low, high = (0, 200) if seed else (40, 256)
    return np.random.RandomState(seed).randint(low, high, (COUNT, SIDE, SIDE, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def networks():
    return MetricNetworks(LinearEncoder(), clip_cases.load("quick"), "quick")


def measured(networks, seed, names=tuple(METRICS), count=COUNT, **options):
    return measure(ImageMetrics(names, COUNT, networks, **options), seed, 0, count)


def measure(metrics, seed, start, stop):
    # float32 embeddings of an image differ by 1e-7 between sizes of batches
    for first in range(start, stop, BATCH):
        rows = slice(first, min(first + BATCH, stop))
        metrics.update(first, images(seed)[rows], TEXTS[rows])
    return metrics


def test_all_metrics_are_those_of_all_features(networks, caplog):
    with caplog.at_level(logging.WARNING):
        result = measured(networks, 1).result(measured(networks, 0))
    assert "subsets of 40 images" in caplog.text
    (features, logits), (real, _) = (networks.encoder(images(seed)) for seed in (1, 0))
    embeddings, real_embeddings = (networks.clip.encode_images(images(seed)) for seed in (1, 0))
    score = ClipScore()
    score.update(0, embeddings, networks.clip.encode_text(TEXTS))
    gaussians = (Gaussian(x.mean(0, np.float64), np.cov(x, rowvar=False, dtype=np.float64)) for x in (features, real))
    kid, near, sharp = (
        kernel_distance(features, real, subset_size=40),
        precision_recall(features, real),
        inception_score(logits),
    )
    expected = {
        "fid": frechet_distance(*gaussians),
        "kid": kid.mean,
        "kid_std": kid.std,
        "precision": near.precision,
        "recall": near.recall,
        "inception_score": sharp.mean,
        "inception_score_std": sharp.std,
        "clip_score": score.result().mean,
        "clip_score_error": score.result().standard_error,
        "cmmd": cmmd(embeddings, real_embeddings),
    }
    assert list(result) == list(expected)
    np.testing.assert_allclose(list(result.values()), list(expected.values()), rtol=1e-6, atol=1e-9)


def test_a_killed_evaluation_continues(networks, tmp_path):
    measured(networks, 1, count=24).save(tmp_path / "metrics.npz")
    metrics = ImageMetrics(tuple(METRICS), COUNT, networks)
    assert metrics.load(tmp_path / "metrics.npz") and metrics.images == 24
    measure(metrics, 1, 24, COUNT)
    real = measured(networks, 0)
    expected = measured(networks, 1).result(real)
    np.testing.assert_allclose(list(metrics.result(real).values()), list(expected.values()), rtol=1e-9)


def test_statistics_stand_for_real_images(networks, tmp_path):
    write_statistics(tmp_path / "real.npz", measured(networks, 0, ["fid"]).statistics())
    statistics = read_statistics(tmp_path / "real.npz", "linear/01", "clean", 5)
    result = measured(networks, 1, ["fid"]).result(statistics=statistics)
    assert result == measured(networks, 1, ["fid"]).result(measured(networks, 0, ["fid"]))


def test_other_networks_have_their_own_names(networks):
    others = MetricNetworks(LinearEncoder(suffix="_lite0"))
    names = ["fid", "kid", "precision_recall", "inception_score"]
    result = measured(others, 1, names).result(measured(others, 0, names))
    assert list(result)[:2] == ["fd_lite0", "kid_lite0"] and all("_lite0" in name for name in result)


def test_what_is_missing_is_told(networks):
    done, part = measured(networks, 1), measured(networks, 1, count=24)
    other = MetricNetworks(LinearEncoder(resizing="legacy_pytorch"), networks.clip, "quick")
    gaussian = done.statistics().gaussian
    for call, match in (
        (lambda: ImageMetrics(["fidd"], COUNT, networks), "did you mean 'fid'"),
        (lambda: ImageMetrics(["kid", "precision_recall"], COUNT, MetricNetworks()), "kid and precision_recall needs"),
        (lambda: ImageMetrics(["clip"], COUNT, MetricNetworks()), "clip needs a CLIP"),
        (lambda: part.result(done), "24 of 40 images"),
        (lambda: done.result(), "fid compares with real images"),
        (lambda: done.result(measured(networks, 0, ["fid"])), "kid compares with features"),
        (lambda: done.result(measured(other, 0)), "resizing of the reference is legacy_pytorch"),
        (lambda: done.result(measured(networks, 0), Statistics(gaussian, "linear/02")), "network of the reference is"),
        (lambda: part.update(24, images(1)[24:]), "16 images has 0 texts"),
        (lambda: measured(networks, 1, ["kid"]).statistics(), "add fid"),
    ):
        with pytest.raises(ConfigError, match=match):
            call()


def test_states_of_other_settings_are_refused(networks, tmp_path):
    measured(networks, 1, ["kid"]).save(tmp_path / "metrics.npz")
    with pytest.raises(ConfigError, match="capacity was 50000 and is now 10"):
        measured(networks, 1, ["kid"], capacity=10).load(tmp_path / "metrics.npz")
