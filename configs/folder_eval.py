"""Evaluation of a cascade trained on a folder of images: captions and images of its validation split.

    imagen evaluate --stages=runs/base,runs/sr --config=configs/folder_eval.py --out=runs/scores \\
        --config.data.path=DIR

No judge exists for photographs, so nothing is scored: the result is a grid of samples with their captions, and
diagnostics of each stage, validation losses among them. `data` must describe the split of folder_base.py; `:tiny` is
for stages trained with that variant.
"""

import ml_collections

from imagen_jax.config.load import default_config
from imagen_jax.config.schema import EvaluationConfig

VARIANTS = ("", "tiny")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = default_config(EvaluationConfig, source="folder")
    config.num_samples = 128
    config.batch_size = 16
    config.data.split = "validation"
    if variant == "tiny":
        config.num_samples = config.batch_size = 8
        config.data.validation_fraction = 0.25
    return config
