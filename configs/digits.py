"""Handwritten digits of scikit-learn: 8×8 images with one channel, one stage, on a CPU.

    imagen train --config=configs/digits.py --workdir=runs/digits
    imagen evaluate --stages=runs/digits --config=configs/digits_eval.py --out=runs/digits

`:sixteen_bit` reads and samples images with 16 bits per channel.
"""

import ml_collections

from imagen_jax.config.load import default_config

VARIANTS = ("", "sixteen_bit")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = default_config(source="digits")
    config.image_size = 8
    config.channels = 1
    config.data.update(validation_split="test", threads=2, prefetch=256)
    config.data.bits = config.sampling.bits = 16 if variant == "sixteen_bit" else 8
    config.text.update(model="random", length=32, dtype="float32")  # ten names need no trained encoder
    config.model.update(input_skip=True, channels=32, head_channels=32, dtype="float32")
    config.model.update(channel_mult=(1, 2), num_res_blocks=(1, 1), attention_types=((), ("self+text",)))
    config.model.update(text_pool_heads=4, num_groups=8)
    config.diffusion.update(prediction_type="v", loss_weighting="sigmoid")
    config.optimizer.update(learning_rate=1e-3, warmup_steps=100, ema_decay=0.995)
    config.training.update(steps=2000, log_every=20, save_every=500, preview_every=500, preview_count=20)
    config.sampling.update(num_inference_steps=50, guidance_scale=2.0, threshold="static")
    return config
