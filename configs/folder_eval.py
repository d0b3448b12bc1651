"""What a cascade that was trained on a folder of images is looked at by: captions and images of its validation split.

    imagen evaluate --stages=runs/base,runs/sr --config=configs/folder_eval.py --out=runs/scores \\
        --config.data.path=DIR

No program can tell whether a photograph shows what its caption says, and so nothing is scored: there are pictures with
their captions, and what is measured of each stage, held-out losses among it. `data` is that of folder_base.py, whose
split it has to be; `:tiny` is for the stages of that name.
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
