"""Base stage in latents: captions to the 32×32 latents of 256×256 images, 400 million parameters.

    imagen train --config=configs/codec_256.py --workdir=runs/codec_256
    imagen train --config=configs/latent_256.py --workdir=runs/latent_256/base

The codec is taken from `codec.path`, runs/codec_256, and kept in the stage's folder. The network is that of
configs/imagen_base_64.py:400m, which sees 64×64 pixels: latents have a quarter of the positions, and no stage enlarges
the images. It has not been trained yet. `:tiny` takes the codec of configs/codec_256.py:tiny, for tests.
"""

import ml_collections

from imagen_jax.config.load import default_config

VARIANTS = ("", "tiny")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = default_config()
    config.image_size = 256
    config.codec.update(kind="kl_vae", path="runs/codec_256")
    config.model.update(channels=192, scan_blocks=True)
    config.diffusion.update(prediction_type="v")
    config.optimizer.update(name="adafactor", b2=0.999)
    config.training.update(batch_size=512, steps=500_000, keep_checkpoints=3)
    config.sampling.update(sampler="dpm_solver", num_inference_steps=32, guidance_scale=4.0, threshold="none")
    if variant == "tiny":
        config.codec.scale_images = 4
        config.codec.model.update(channels=4, num_groups=4, num_res_blocks=(0, 0, 0, 0), middle_attention=False)
        config.text.update(model="random", length=24)
        config.model.update(channels=8, channel_mult=(1, 2), num_res_blocks=(1, 1), head_channels=8)
        config.model.update(attention_types=((), ("self+text",)), num_groups=4)
        config.optimizer.update(name="adam", warmup_steps=1)
        config.training.update(batch_size=2, steps=2, log_every=1, save_every=2, preview_every=2, preview_count=2)
        config.sampling.num_inference_steps = 2
    return config
