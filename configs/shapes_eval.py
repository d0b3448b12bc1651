"""Evaluation of a `shapes` cascade: held-out captions, with attribute combinations that training never shows.

    imagen evaluate --stages=runs/base,runs/sr --config=configs/shapes_eval.py --out=runs/scores

`--config.data.split=validation` scores captions with combinations that training does show.
"""

import ml_collections

from imagen_jax.config.load import default_config
from imagen_jax.config.schema import EvaluationConfig


def get_config() -> ml_collections.ConfigDict:
    config = default_config(EvaluationConfig)
    config.judge = "shapes"
    config.num_samples = 512
    config.batch_size = 16  # that of the previews: compiled once for both
    config.data.update(split="held_out", num_examples=1_000_000)
    return config
