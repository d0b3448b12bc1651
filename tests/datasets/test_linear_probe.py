import numpy as np

from imagen_jax.datasets.linear_probe import linear_probe


def test_probe_accuracy():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1000, 8))
    there = np.where(features[:, 3] * 5 + 1 > 0, "red", "blue")
    absent = rng.choice(["red", "blue"], 1000)
    for labels, low, high in ((there, 0.95, 1.0), (absent, 0.4, 0.6)):
        accuracy = linear_probe(features[:600], labels[:600], features[600:], labels[600:])
        assert low <= accuracy <= high
