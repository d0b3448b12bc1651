"""Base stage on `figures`, trained to inpaint: people in garments, 32×32, on a CPU. docs/try_on.md has the recipe.

    imagen pretrain_text --config=configs/pretrain_text.py:figures --out=runs/figures/text
    imagen train --config=configs/figures_base.py --workdir=runs/figures/base

Cost: 6,000 steps in 19 minutes on one busy core, beside the super-resolution stage on another. Result: of 512 garments
that training never shows, inpainting draws 92% right, and leaves all else as it is.

`:tiny` is narrower, has an untrained text encoder, and compiles and runs in seconds, for tests.

The network and the objective are those of shapes_base.py. Half of the masks are garments: the area that any garment of
that place may cover, so that a mask does not tell a sweater from a vest.
"""

import ml_collections

from imagen_jax.config.load import default_config

VARIANTS = ("", "tiny")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = default_config(source="figures")
    config.image_size = 32
    config.data.update(threads=2, prefetch=256)
    # the longest caption of the grammar has 90 bytes
    config.text.update(model="runs/figures/text", length=96, dtype="float32")
    config.model.update(patch_size=4, positions=8, input_skip=True, channels=64, head_channels=16, dtype="float32")
    config.model.update(channel_mult=(1,), num_res_blocks=(0,), attention_types=((),))
    config.model.update(middle_attention_types=("text", "text"), mlp_ratio=2)
    config.model.update(cond_dim_mult=1, text_pool_heads=4, num_groups=8)
    config.inpainting.update(enabled=True, everything=0.2, boxes=0.1, strokes=0.1, borders=0.1, objects=0.5)
    config.diffusion.update(prediction_type="x", loss_weighting="sigmoid", loss_weighting_bias=-4.0)
    config.optimizer.update(name="muon", learning_rate=1e-2, warmup_steps=60, b1=0.95)
    config.optimizer.ema_decay = 0.998
    config.training.update(batch_size=16, steps=6000, log_every=25, save_every=500, preview_every=2000)
    config.sampling.update(num_inference_steps=12, guidance_scale=1.5, threshold="static")
    if variant == "tiny":
        config.text.model = "random"
        config.model.update(channels=16, middle_attention_types=("self+text",))
        config.optimizer.update(warmup_steps=10)
        config.training.update(batch_size=8, steps=20, log_every=5, save_every=10, preview_every=10, preview_count=8)
        config.sampling.num_inference_steps = 4
    return config
