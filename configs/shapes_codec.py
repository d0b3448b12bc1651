"""Codec of `shapes`: 32×32 images to 8×8 latents with 8 channels and back, on a CPU.

    imagen train --config=configs/shapes_codec.py --workdir=runs/codec

Its latents are what configs/shapes_latent.py trains a stage on (docs/latents.md). `:tiny` is narrower and compiles and
runs in seconds, for tests.
"""

import ml_collections

from imagen_jax.config.load import default_config

VARIANTS = ("", "tiny")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = default_config(network="kl_vae")
    config.image_size = 32
    config.data.update(threads=2, prefetch=512)
    config.model.update(latent_channels=8, channels=16, channel_mult=(1, 2, 4), num_res_blocks=(0, 1, 1))
    config.model.update(middle_attention=False, num_groups=8, dtype="float32")
    config.reconstruction.update(disc_start=1500, disc_weight=0.1, disc_channels=16, disc_levels=2)
    config.optimizer.update(learning_rate=2e-3, warmup_steps=60, ema_decay=0.995)
    config.training.update(batch_size=16, steps=3000, log_every=25, save_every=1000, preview_every=1000)
    if variant == "tiny":
        config.model.update(latent_channels=4, channels=8)
        config.reconstruction.update(disc_start=10, disc_channels=8, disc_levels=1)
        config.optimizer.update(warmup_steps=5)
        config.training.update(batch_size=8, steps=20, log_every=5, save_every=10, preview_every=10, preview_count=8)
    return config
