"""Super-resolution stage on a folder of captioned images: 64×64 to 256×256 images, on one GPU.

    imagen train --config=configs/folder_sr.py --workdir=runs/sr --config.data.path=DIR

docs/data.md describes where captions are read from, and what happens to images that are corrupt or of other sizes.
Images smaller than 256×256 count as corrupt, unless data.transform.upscale is set.

The network is that of imagen_sr_256.py:small; it predicts v, because eps shifts colors (arXiv:2210.02303, Section 2.4).
Not yet trained at this size: that a batch of 64 fits into 80 GB is an estimate. `:tiny` compiles and runs in seconds,
for tests; its text encoder is random.
"""

import math

import ml_collections

from imagen_jax.config.load import default_config

VARIANTS = ("", "tiny")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = default_config(source="folder", network="efficient_unet")
    config.image_size, config.low_res_size = 256, 64
    config.data.path = ""  # yours: --config.data.path=DIR, or gs://BUCKET/DIR
    config.text.model = "google/flan-t5-xl"
    config.model.update(channels=64, channel_mult=(1, 2, 4, 8), num_res_blocks=(2, 4, 8, 8), scan_blocks=True)
    config.model.update(attention_types=((), (), (), ("self+text",)), mlp_ratio=2, skip_scale=1 / math.sqrt(2))
    config.diffusion.prediction_type = "v"
    config.optimizer.update(warmup_steps=5000)
    config.training.update(steps=300_000, save_every=2000, preview_every=5000)
    config.sampling.update(sampler="dpm_solver", num_inference_steps=32, guidance_scale=1.5, aug_level=0.1)
    if variant == "tiny":
        config.image_size, config.low_res_size = 32, 16
        config.data.update(validation_fraction=0.25, threads=2)
        config.text.update(model="random", length=24, dtype="float32")
        config.model.update(channels=16, head_channels=8, channel_mult=(1,), num_res_blocks=(1,), dtype="float32")
        config.model.update(patch_size=4, attention_types=((),), scan_blocks=False)
        config.model.update(cond_dim_mult=1, text_pool_heads=4, num_groups=8)
        config.optimizer.update(learning_rate=1e-2, warmup_steps=10, ema_decay=0.95)
        config.training.update(batch_size=8, steps=20, log_every=5, save_every=10, preview_every=10, preview_count=4)
        config.sampling.update(sampler="ddpm", num_inference_steps=2)
    return config
