"""A linear probe: how much information about labels frozen embeddings contain linearly."""

import numpy as np


def linear_probe(
    features: np.ndarray, labels: np.ndarray, test_features: np.ndarray, test_labels: np.ndarray, ridge: float = 1e-3
) -> float:
    """Returns the test accuracy, in [0, 1], of ridge regression from features to one-hot labels.

    Features are standardized with the training statistics, so that `ridge` means the same for every encoder.

    Args:
        features: [N, D].
        labels: [N].
        test_features: [M, D].
        test_labels: [M].
        ridge: strength of the L2 penalty, per training example.
    """
    mean, std = features.mean(0), features.std(0) + 1e-6
    x, test_x = (np.c_[(part - mean) / std, np.ones(len(part))] for part in (features, test_features))
    classes = np.unique(labels)
    target = (labels[:, None] == classes).astype(np.float64)
    weights = np.linalg.solve(x.T @ x + ridge * len(x) * np.eye(x.shape[1]), x.T @ target)
    return float(np.mean(classes[np.argmax(test_x @ weights, axis=1)] == test_labels))
