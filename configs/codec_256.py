"""Codec of 256×256 images: to 32×32 latents with 4 channels and back, as KL-f8 of latent diffusion (arXiv:2112.10752).

    imagen train --config=configs/codec_256.py --workdir=runs/codec_256

Its latents are what configs/latent_256.py trains a stage on (docs/latents.md). It has not been trained yet. `:tiny` is
narrower and compiles and runs in seconds, for tests.

From the paper: channels, blocks and attention of the network, the KL weight, and the discriminator's start and levels.
Ours: the discriminator's weight is in proportion to the absolute error's gradient in each image, there is no perceptual
term, and Adam's learning rate.

`shapes` at 256×256 stands in for photographs: give your own, as configs/folder_base.py does.
"""

import ml_collections

from imagen_jax.config.load import default_config

VARIANTS = ("", "tiny")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = default_config(network="kl_vae")
    config.image_size = 256
    config.optimizer.update(learning_rate=1e-4, warmup_steps=1000, b1=0.5)
    config.training.update(batch_size=128, steps=250_000)
    if variant == "tiny":
        config.model.update(channels=4, num_groups=4, num_res_blocks=(0, 0, 0, 0), middle_attention=False)
        config.reconstruction.update(disc_start=1, disc_channels=4)
        config.optimizer.update(warmup_steps=1)
        config.training.update(batch_size=2, steps=2, log_every=1, save_every=2, preview_every=2, preview_count=2)
    return config
