"""Super-resolution stage on emoji: 64×64 to 128×128 images on one GPU; `:tiny`, 32×32 to 64×64 on a CPU.

    imagen train --config=configs/emoji_sr.py:tiny --workdir=runs/emoji/sr

Cost of `:tiny`: 5 minutes on one core, with the recipe of shapes_sr.py. emoji_base.py shows how to prepare the data.
The full config has 28 million parameters and has not been trained.
"""

import ml_collections

from imagen_jax.config.load import default_config

VARIANTS = ("", "tiny")
# Themes, for neighbours by code point are of one kind: from hot dog to popcorn, and from rat to chipmunk.
FOOD_AND_ANIMALS = "train[209:284]+train[387:445]"


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = default_config(source="tfds")
    config.image_size, config.low_res_size = 128, 64
    config.data.update(path="runs/data/emoji/colours", captions=("captions",), validation_split="test")
    config.data.update(max_corrupt=0.0, threads=8, prefetch=64)
    config.data.transform.max_pixels = 2**24
    config.text.update(model="google/flan-t5-base", length=64)
    config.model.update(channels=64, channel_mult=(1, 2, 4, 4), num_res_blocks=(2, 2, 2, 2), scan_blocks=True)
    config.model.update(attention_types=((), (), (), ()), middle_attention_types=("self+text",), text_pool_heads=4)
    config.diffusion.update(prediction_type="v", loss_weighting="sigmoid", loss_weighting_bias=-1.0)
    config.diffusion.aug_schedule_shift = 4.0
    config.optimizer.update(warmup_steps=1000)
    config.training.update(batch_size=64, steps=50_000, preview_every=5000)
    config.sampling.update(num_inference_steps=32, threshold="static", aug_level=0.05)
    if variant == "tiny":
        config.image_size, config.low_res_size = 64, 32
        config.data.update(path="runs/data/emoji/white", captions=("name",), threads=2)
        config.data.split = config.data.validation_split = FOOD_AND_ANIMALS  # it learns these names by heart
        config.text.update(model="random", length=40, dtype="float32")
        config.model.update(patch_size=4, input_skip=True, channels=48, head_channels=16, dtype="float32")
        config.model.update(channel_mult=(1,), num_res_blocks=(0,), attention_types=((),), scan_blocks=False)
        config.model.update(middle_attention_types=(), cond_dim_mult=1, text_pool_heads=4, num_groups=8)
        config.diffusion.update(prediction_type="x", loss_weighting_bias=-3.0)
        config.optimizer.update(name="muon", learning_rate=1e-2, warmup_steps=60, b1=0.95)
        config.optimizer.ema_decay = 0.995
        config.training.update(batch_size=16, steps=1800, log_every=25, save_every=1000, preview_every=1000)
        config.sampling.num_inference_steps = 4
    return config
