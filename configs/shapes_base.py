"""Base stage on `shapes`: captions to 32×32 images, on a CPU.

    imagen train --config=configs/shapes_base.py --workdir=runs/base

Cost: 6,000 steps in seven minutes on 2 cores, beside the super-resolution stage. Result: 94% of held-out captions are
rendered correctly in everything they claim.

`:wide` has 32×48 images (height × width), `:transparent` RGBA images without a background. `:tiny` is narrower and
compiles and runs in seconds, for tests.

`:long` is the base stage of the cascade that ships with the package, which `make shapes` trains: wider and with 20,000
steps, 65 minutes on 2 cores that other programs used too. Of 2,048 held-out captions, 97.7% are fully correct with 8
sampling steps, 98.5% with 12; 98.0% with 8 and guidance 2.0. Most of the others ask for a green ring, which training
never shows.

`:inpaint` starts from that stage and is trained to inpaint (docs/editing.md): 25 minutes on a busy core.

Quality after some minutes depends on the number of updates, not on the size of the network: hence one level of 4×4
patches, few channels and batches of 16. Position embeddings (model.positions) let two text attention layers find the
words about a place; residual blocks then draw it.

Guidance helps with combinations that training never showed; weight 3 bends edges. Of 6, 8, 12 and 24 sampling steps,
fewer leave less grain; 6, 8 and 12 are correct equally often.

diffusion.loss_weighting_bias weighs high noise against low noise. Of 1,024 held-out captions, after 7,600 updates with
a bias of -2, -3, -4.5 and -6, 92, 90, 95 and 92% were fully correct, and 94% with -4.5 and another seed: fine detail is
left to super-resolution.

The objective has the lowest error of nine, measured after 700 steps with a bias of -3 (docs/claims.md): the mean
squared error of x_hat is 0.0149 for x with sigmoid weighting, 0.0153 for v with simple, 0.0195 for the paper's eps with
simple weighting.
"""

import ml_collections

from imagen_jax.config.load import default_config

VARIANTS = ("", "long", "inpaint", "wide", "transparent", "tiny")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = default_config()
    config.image_size = (32, 48) if variant == "wide" else 32
    config.channels = 4 if variant == "transparent" else 3
    config.data.update(transparent=variant == "transparent", threads=2, prefetch=512)
    config.text.update(model="shapes", length=96, dtype="float32")  # the longest caption of the grammar has 96 bytes
    config.model.update(patch_size=4, positions=8, input_skip=True, channels=64, head_channels=16, dtype="float32")
    config.model.update(channel_mult=(1,), num_res_blocks=(0,), attention_types=((),))
    config.model.update(middle_attention_types=("text", "text"), mlp_ratio=2)
    config.model.update(cond_dim_mult=1, text_pool_heads=4, num_groups=8)
    config.diffusion.update(prediction_type="x", loss_weighting="sigmoid", loss_weighting_bias=-4.5)
    config.optimizer.update(name="muon", learning_rate=1e-2, warmup_steps=60, b1=0.95)
    config.optimizer.ema_decay = 0.998
    config.training.update(batch_size=16, steps=6000, log_every=25, save_every=1000, preview_every=1000)
    config.sampling.update(num_inference_steps=8, guidance_scale=1.5, threshold="static")
    if variant in ("long", "inpaint"):
        config.model.update(channels=72, head_channels=18)
        config.optimizer.ema_decay = 0.9995
        config.training.update(steps=20_000, log_every=100, save_every=2000, preview_every=4000)
        config.sampling.num_inference_steps = 12
    if variant == "inpaint":
        config.inpainting.update(enabled=True, objects=1.0)
        config.optimizer.update(learning_rate=3e-3, ema_decay=0.998)
        config.training.update(init_from="shapes/stage_0", steps=6000, save_every=500, preview_every=2000)
    if variant == "tiny":
        config.model.update(channels=16, middle_attention_types=("self+text",))
        config.optimizer.update(warmup_steps=10)
        config.training.update(batch_size=8, steps=20, log_every=5, save_every=10, preview_every=10, preview_count=8)
        config.sampling.num_inference_steps = 4
    return config
