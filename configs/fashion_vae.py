"""Fashion-MNIST with a hierarchical VAE: 32×32 images with one channel, one stage, on a CPU (docs/vae.md).

The images are in Debian's package `dataset-fashion-mnist`, or in another folder, data.path.

    imagen train --config=configs/fashion_vae.py --workdir=runs/fashion_vae
    imagen sample --stages=runs/fashion_vae --prompts='a photo of a dress' --out=runs/fashion_samples

Without `kl_balancing` one of the two groups of each resolution is not used in the end.

`:plain` has one group of latents in a network of as many parameters, as a VAE without a hierarchy. `:tiny` compiles and
runs in seconds, for tests.
"""

import ml_collections

from imagen_jax.config.load import default_config

VARIANTS = ("", "plain", "tiny")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = default_config(source="fashion_mnist", network="hvae")
    config.image_size = 32
    config.channels = 1
    config.data.update(validation_split="test", threads=2, prefetch=256)
    config.text.update(model="random", length=32, dtype="float32")  # ten names need no trained encoder
    config.model.update(channels=24, channel_mult=(1, 2, 2, 2), num_res_blocks=(1, 1, 1, 1), head_channels=24)
    config.model.update(latent_groups=(0, 2, 2, 2), latent_channels=8, text_pool_heads=4, num_groups=8, dtype="float32")
    config.vae.update(components=3, kl_warmup_steps=1200, kl_balancing=True)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=100, skip_norm=300.0, ema_decay=0.998)
    config.training.update(batch_size=32, steps=6000, log_every=25, save_every=500, preview_every=500)
    config.sampling.temperature = 0.9
    if variant == "plain":
        config.model.update(channels=38, head_channels=38, text_pool_heads=2, num_groups=19)
        config.model.update(latent_groups=(0, 0, 0, 1), latent_channels=48)
    if variant == "tiny":
        config.model.update(channels=8, channel_mult=(1, 1, 1, 1), num_res_blocks=(0, 0, 0, 0), head_channels=8)
        config.model.update(latent_groups=(0, 0, 1, 1), latent_channels=2)
        config.vae.update(components=2, kl_warmup_steps=10, importance_samples=2)
        config.optimizer.warmup_steps = 10
        config.training.update(batch_size=8, steps=20, log_every=5, save_every=10, preview_every=10, preview_count=8)
    return config
