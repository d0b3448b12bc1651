"""A diffusion stage on `shapes` that refines the 32×32 images of a VAE, on a CPU (DiffuseVAE, arXiv:2201.00308).

    imagen train --config=configs/shapes_vae.py --workdir=runs/shapes_vae
    imagen train --config=configs/shapes_refine.py --workdir=runs/shapes_refine

The VAE of `diffusion.low_res_vae`, runs/shapes_vae, reconstructs each training image, and the network, which is that of
configs/shapes_base.py, sees the reconstruction with noise. `:tiny` refines configs/shapes_vae.py:tiny, for tests.

It samples behind that VAE, --stages=runs/shapes_vae,runs/shapes_refine. Reconstructions are closer to images than the
VAE's samples are; noise hides some of the difference: in training of any level, in sampling of `sampling.aug_level`.
"""

import ml_collections

from imagen_jax.config.load import default_config

VARIANTS = ("", "tiny")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = default_config()
    config.image_size = config.low_res_size = 32
    config.data.update(threads=2, prefetch=512)
    config.text.update(model="shapes", length=96, dtype="float32")  # the longest caption of the grammar has 96 bytes
    config.model.update(patch_size=4, positions=8, input_skip=True, channels=64, head_channels=16, dtype="float32")
    config.model.update(channel_mult=(1,), num_res_blocks=(0,), attention_types=((),))
    config.model.update(middle_attention_types=("text", "text"), mlp_ratio=2)
    config.model.update(cond_dim_mult=1, text_pool_heads=4, num_groups=8)
    config.diffusion.update(low_res_vae="runs/shapes_vae", aug_schedule_shift=2.0)
    config.diffusion.update(prediction_type="x", loss_weighting="sigmoid", loss_weighting_bias=-4.5)
    config.optimizer.update(name="muon", learning_rate=1e-2, warmup_steps=60, b1=0.95)
    config.optimizer.ema_decay = 0.998
    config.training.update(batch_size=16, steps=6000, log_every=25, save_every=1000, preview_every=1000)
    config.sampling.update(num_inference_steps=8, guidance_scale=1.5, threshold="static", aug_level=0.2)
    if variant == "tiny":
        config.model.update(channels=16, middle_attention_types=("self+text",))
        config.optimizer.update(warmup_steps=10)
        config.training.update(batch_size=8, steps=20, log_every=5, save_every=10, preview_every=10, preview_count=8)
        config.sampling.num_inference_steps = 4
    return config
