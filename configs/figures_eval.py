"""Evaluation of a `figures` cascade on captions alone; of each, one garment was held out of training.

    imagen evaluate --stages=runs/figures/base,runs/figures/sr --config=configs/figures_eval.py --out=runs/scores

Try-on, where the person is given, is measured by `python -m benchmarks.try_on` (docs/try_on.md).
"""

import ml_collections

from imagen_jax.config.load import default_config
from imagen_jax.config.schema import EvaluationConfig


def get_config() -> ml_collections.ConfigDict:
    config = default_config(EvaluationConfig, source="figures")
    config.judge = "figures"
    config.num_samples = 512
    config.batch_size = 16
    config.data.split = "held_out"
    return config
