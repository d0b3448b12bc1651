"""Evaluation of a `digits` stage: 500 captions, judged by a classifier fitted to real training images.

imagen evaluate --stages=runs/digits --config=configs/digits_eval.py --out=runs/digits
"""

import ml_collections

from imagen_jax.config.load import default_config
from imagen_jax.config.schema import EvaluationConfig


def get_config() -> ml_collections.ConfigDict:
    config = default_config(EvaluationConfig, source="digits")
    config.judge = "digits"
    config.num_samples = 500
    config.batch_size = 100
    config.data.split = "test"
    return config
