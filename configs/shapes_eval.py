"""What a `shapes` cascade is scored on: held-out captions, of attribute combinations that training never shows.

    imagen evaluate --stages=runs/base,runs/sr --config=configs/shapes_eval.py --out=runs/scores

`--config.data.split=validation` scores captions of combinations that training does show.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The config."""
    config = ml_collections.ConfigDict()
    config.judge = "shapes"
    config.count = 512
    config.batch_size = 16  # that of the previews: compiled once for both
    config.seed = 0

    config.data = ml_collections.ConfigDict()
    config.data.source = "shapes"
    config.data.split = "held_out"
    config.data.seed = 0
    config.data.examples = 1_000_000
    config.data.bits = 8
    config.data.transparent = False  # True: captions without backgrounds
    return config
