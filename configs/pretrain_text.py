"""Pretraining of the text encoder of the shapes data set, which comes with the package.

    imagen pretrain_text --config=configs/pretrain_text.py --out=DIR

`:figures` is that of the figures data set, for configs/figures_base.py and figures_sr.py: of all captions, held-out
combinations included. `:tiny` has the same form and takes seconds, for tests.
"""

import ml_collections

from imagen_jax.config.load import default_config
from imagen_jax.config.schema import PretrainTextConfig

VARIANTS = ("", "figures", "tiny")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = default_config(PretrainTextConfig)
    if variant == "figures":
        config.data.source = "figures"
        config.steps = 1500
    if variant == "tiny":
        config.encoder.update(d_model=48, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        config.data.update(max_length=24, pool=2)
        config.update(batch_size=16, steps=2, warmup_steps=1)
        config.probe.update(train_captions=200, test_captions=100)
    return config
