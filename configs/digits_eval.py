"""What a `digits` stage is scored on: 500 captions, judged by a classifier that was fitted to real training images.

imagen evaluate --stages=runs/digits --config=configs/digits_eval.py --out=runs/digits
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The config."""
    config = ml_collections.ConfigDict()
    config.judge = "digits"
    config.count = 500
    config.batch_size = 100
    config.seed = 0

    config.data = ml_collections.ConfigDict()
    config.data.source = "digits"
    config.data.split = "test"
    config.data.bits = 8
    return config
