"""Super-resolution stage on `figures`, trained to inpaint: 32×32 to 64×64 images, on a CPU. docs/try_on.md has the
recipe.

    imagen train --config=configs/figures_sr.py --workdir=runs/figures/sr

Cost: 3,000 steps in 14 minutes on one busy core, beside the base stage on another. Its text encoder and its masks are
those of figures_base.py, its network is that of shapes_sr.py. `:tiny` is narrower, has an untrained text encoder, and
compiles and runs in seconds, for tests.
"""

import ml_collections

from imagen_jax.config.load import default_config

VARIANTS = ("", "tiny")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = default_config(source="figures")
    config.image_size = 64
    config.low_res_size = 32
    config.data.update(threads=2, prefetch=256)
    # the longest caption of the grammar has 90 bytes
    config.text.update(model="runs/figures/text", length=96, dtype="float32")
    config.model.update(patch_size=4, input_skip=True, channels=48, head_channels=16, dtype="float32")
    config.model.update(channel_mult=(1,), num_res_blocks=(0,), attention_types=((),), middle_attention_types=())
    config.model.update(cond_dim_mult=1, text_pool_heads=4, num_groups=8)
    config.inpainting.update(enabled=True, everything=0.2, boxes=0.1, strokes=0.1, borders=0.1, objects=0.5)
    config.diffusion.update(aug_schedule_shift=4.0)
    config.diffusion.update(prediction_type="x", loss_weighting="sigmoid", loss_weighting_bias=-3.0)
    config.optimizer.update(name="muon", learning_rate=1e-2, warmup_steps=60, b1=0.95)
    config.optimizer.ema_decay = 0.995
    config.training.update(batch_size=16, steps=3000, log_every=25, save_every=500, preview_every=1000)
    config.sampling.update(num_inference_steps=4, threshold="static", aug_level=0.05)
    if variant == "tiny":
        config.text.model = "random"
        config.model.update(channels=16, middle_attention_types=("self+text",))
        config.optimizer.update(warmup_steps=10)
        config.training.update(batch_size=8, steps=20, log_every=5, save_every=10, preview_every=10, preview_count=8)
        config.sampling.num_inference_steps = 2
    return config
