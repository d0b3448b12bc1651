"""Evaluation of a Fashion-MNIST stage: 256 captions of the test split, without a judge.

imagen evaluate --stages=runs/fashion_vae --config=configs/fashion_eval.py --out=runs/fashion_scores
"""

import ml_collections

from imagen_jax.config.load import default_config
from imagen_jax.config.schema import EvaluationConfig


def get_config() -> ml_collections.ConfigDict:
    config = default_config(EvaluationConfig, source="fashion_mnist")
    config.num_samples = 256
    config.batch_size = 64
    config.data.split = "test"
    return config
