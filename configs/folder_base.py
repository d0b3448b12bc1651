"""Base stage on a folder of captioned images: captions to 64×64 images, on one GPU.

    imagen train --config=configs/folder_base.py --workdir=runs/base --config.data.path=DIR

docs/data.md describes where captions are read from, and what happens to images that are corrupt or of other sizes.
folder_sr.py enlarges the images of this stage.

The network and its schedule are those of imagen_base_64.py:200m; it predicts v, which stays informative at high noise.
Not yet trained at this size: that a batch of 64 fits into 80 GB is an estimate. `:tiny` compiles and runs in seconds,
for tests; its text encoder is random.
"""

import ml_collections

from imagen_jax.config.load import default_config

VARIANTS = ("", "tiny")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = default_config(source="folder")
    config.data.path = ""  # yours: --config.data.path=DIR, or gs://BUCKET/DIR
    config.text.model = "google/flan-t5-xl"
    config.model.scan_blocks = True
    config.diffusion.prediction_type = "v"
    config.optimizer.update(warmup_steps=5000)
    config.training.update(steps=300_000, save_every=2000, preview_every=5000)
    config.sampling.update(sampler="dpm_solver", guidance_scale=5.0)
    if variant == "tiny":
        config.image_size = 16
        config.data.update(validation_fraction=0.25, threads=2)
        config.text.update(model="random", length=24, dtype="float32")
        config.model.update(channels=16, head_channels=8, channel_mult=(1,), num_res_blocks=(1,), dtype="float32")
        config.model.update(
            patch_size=4, attention_types=((),), cond_dim_mult=1, text_pool_heads=4, num_groups=8, scan_blocks=False
        )
        config.optimizer.update(learning_rate=1e-2, warmup_steps=10, ema_decay=0.95)
        config.training.update(batch_size=8, steps=20, log_every=5, save_every=10, preview_every=10, preview_count=4)
        config.sampling.update(sampler="ddpm", num_inference_steps=2)
    return config
