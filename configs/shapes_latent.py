"""Base stage on `shapes` in latents: captions to the 8×8 latents of 32×32 images, on a CPU.

    imagen train --config=configs/shapes_codec.py --workdir=runs/codec
    imagen train --config=configs/shapes_latent.py --workdir=runs/latent/base

The codec is taken from `codec.path`, runs/codec, and kept in the stage's folder. The network is that of
configs/shapes_base.py, which sees patches of 4×4 pixels where this one sees latents. `:tiny` takes the codec of
configs/shapes_codec.py:tiny, for tests.
"""

import ml_collections

from imagen_jax.config.load import default_config

VARIANTS = ("", "tiny")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = default_config()
    config.image_size = 32
    config.data.update(threads=2, prefetch=512)
    config.text.update(model="shapes", length=96, dtype="float32")  # the longest caption of the grammar has 96 bytes
    config.codec.update(kind="kl_vae", path="runs/codec")
    config.codec.model.update(latent_channels=8, channels=16, channel_mult=(1, 2, 4), num_res_blocks=(0, 1, 1))
    config.codec.model.update(middle_attention=False, num_groups=8, dtype="float32")
    config.model.update(patch_size=1, positions=8, input_skip=True, channels=64, head_channels=16, dtype="float32")
    config.model.update(channel_mult=(1,), num_res_blocks=(0,), attention_types=((),))
    config.model.update(middle_attention_types=("text", "text"), mlp_ratio=2)
    config.model.update(cond_dim_mult=1, text_pool_heads=4, num_groups=8)
    config.diffusion.update(prediction_type="x", loss_weighting="sigmoid", loss_weighting_bias=-3.0)
    config.optimizer.update(name="muon", learning_rate=1e-2, warmup_steps=60, b1=0.95)
    config.optimizer.ema_decay = 0.998
    config.training.update(batch_size=16, steps=6000, log_every=25, save_every=1000, preview_every=1000)
    config.sampling.update(num_inference_steps=8, guidance_scale=1.5, threshold="none")
    if variant == "tiny":
        config.codec.update(scale_images=64)
        config.codec.model.update(latent_channels=4, channels=8)
        config.model.update(channels=16, middle_attention_types=("self+text",))
        config.optimizer.update(warmup_steps=10)
        config.training.update(batch_size=8, steps=20, log_every=5, save_every=10, preview_every=10, preview_count=8)
        config.sampling.num_inference_steps = 4
    return config
