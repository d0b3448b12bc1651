"""Super-resolution stage on `shapes`: 32×32 to 64×64 images, on a CPU.

    imagen train --config=configs/shapes_sr.py --workdir=runs/sr

`:wide` and `:transparent` enlarge the images of those variants of shapes_base.py, 32×48 to 64×96 and RGBA. `:tiny` is
narrower, has text attention, and compiles and runs in seconds, for tests. `:long` is the one of the cascade that ships
with the package, which `make shapes` trains: wider, with 16,000 steps. Backgrounds of 16 prompts then deviate by 1.4 of
255 from their mean (root mean square), and by 1.6 after 8,000 steps; there, other sampling settings gave 1.55 to 2.1.

`:inpaint` starts from that stage and is trained to inpaint (docs/editing.md): 25 minutes on a busy core.

The objective was measured among nine, after 250 steps (docs/claims.md): the mean squared error of x_hat is 0.0071 for x
with sigmoid weighting and 0.0068 with simple, at best 0.0093 for v and 0.0147 for eps.

The low-resolution image says where objects are, so the network has neither positions nor attention. The augmentation
schedule is shifted to levels at which that image still shows its shapes: half of them are below 0.13. Sampling adds
little noise (0.05) and takes few steps: with more the samples are noisier, and not correct more often.
"""

import ml_collections

from imagen_jax.config.load import default_config

VARIANTS = ("", "long", "inpaint", "wide", "transparent", "tiny")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = default_config()
    config.image_size = (64, 96) if variant == "wide" else 64
    config.channels = 4 if variant == "transparent" else 3
    config.low_res_size = (32, 48) if variant == "wide" else 32
    config.data.update(transparent=variant == "transparent", threads=2, prefetch=512)
    config.text.update(model="shapes", length=96, dtype="float32")  # the longest caption of the grammar has 96 bytes
    config.model.update(patch_size=4, input_skip=True, channels=48, head_channels=16, dtype="float32")
    config.model.update(channel_mult=(1,), num_res_blocks=(0,), attention_types=((),), middle_attention_types=())
    config.model.update(cond_dim_mult=1, text_pool_heads=4, num_groups=8)
    config.diffusion.update(aug_schedule_shift=4.0)
    config.diffusion.update(prediction_type="x", loss_weighting="sigmoid", loss_weighting_bias=-3.0)
    config.optimizer.update(name="muon", learning_rate=1e-2, warmup_steps=60, b1=0.95)
    config.optimizer.ema_decay = 0.995
    config.training.update(batch_size=16, steps=1700, log_every=25, save_every=1000, preview_every=1000)
    config.sampling.update(num_inference_steps=4, threshold="static", aug_level=0.05)
    if variant in ("long", "inpaint"):
        config.model.update(channels=56, head_channels=8)
        config.optimizer.ema_decay = 0.999
        config.training.update(steps=16_000, log_every=100, save_every=2000, preview_every=4000)
    if variant == "inpaint":
        config.inpainting.update(enabled=True, objects=1.0)
        config.optimizer.update(learning_rate=2e-3, ema_decay=0.998)
        config.training.update(init_from="shapes/stage_1", steps=4000, save_every=500, preview_every=2000)
    if variant == "tiny":
        config.model.update(channels=16, middle_attention_types=("self+text",))
        config.optimizer.update(warmup_steps=10)
        config.training.update(batch_size=8, steps=20, log_every=5, save_every=10, preview_every=10, preview_count=8)
        config.sampling.num_inference_steps = 2
    return config
