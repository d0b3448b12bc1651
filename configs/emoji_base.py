"""Base stage on emoji: names to 64×64 images on one GPU; `:tiny`, 32×32 on a CPU.

    imagen prepare --dataset=emoji/white --out=runs/data
    imagen train --config=configs/emoji_base.py:tiny --workdir=runs/emoji/base

Cost of `:tiny`: 8 minutes on one core. Result: docs/recipes.md shows its samples. The full config needs
`--dataset=emoji/colours` and google/flan-t5-base; it has 101 million parameters and has not been trained.

`:tiny` memorizes the images of 133 names of food, plants and animals with the recipe of shapes_base.py: 4×4 patches, x
prediction with sigmoid weighting, Muon. The conditioning vector is twice as wide, because all of a name has to pass
through it or through attention. The text encoder is random: there are few names, which only have to differ.
"""

import ml_collections

from imagen_jax.config.load import default_config

VARIANTS = ("", "tiny")
# Themes, for neighbours by code point are of one kind: from hot dog to popcorn, and from rat to chipmunk.
FOOD_AND_ANIMALS = "train[209:284]+train[387:445]"


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = default_config(source="tfds")
    config.data.update(path="runs/data/emoji/colours", captions=("captions",), validation_split="test")
    config.data.update(max_corrupt=0.0, threads=8, prefetch=64)
    config.data.transform.max_pixels = 2**24
    config.text.update(model="google/flan-t5-base", length=64)
    config.model.update(num_res_blocks=(2, 2, 2, 2), scan_blocks=True)
    config.model.text_pool_heads = 4
    config.model.attention_types = ((), (), ("self+text",), ("self+text",))
    config.diffusion.update(prediction_type="v", loss_weighting="sigmoid", loss_weighting_bias=-1.0)
    config.optimizer.update(warmup_steps=1000)
    config.training.update(batch_size=128, steps=100_000, preview_every=5000)
    config.sampling.update(guidance_scale=2.0, threshold="static")
    if variant == "tiny":
        config.image_size = 32
        config.data.update(path="runs/data/emoji/white", captions=("name",), threads=2)
        config.data.split = config.data.validation_split = FOOD_AND_ANIMALS  # it learns these names by heart
        config.text.update(model="random", length=40, dtype="float32")
        config.model.update(patch_size=4, positions=8, input_skip=True, channels=64, head_channels=16, dtype="float32")
        config.model.update(channel_mult=(1,), num_res_blocks=(0,), attention_types=((),), scan_blocks=False)
        config.model.update(middle_attention_types=("text", "text"), mlp_ratio=2)
        config.model.update(cond_dim_mult=2, text_pool_heads=4, num_groups=8)
        config.diffusion.update(prediction_type="x", loss_weighting_bias=-3.0)
        config.optimizer.update(name="muon", learning_rate=1e-2, warmup_steps=60, b1=0.95)
        config.optimizer.ema_decay = 0.998
        config.training.update(batch_size=16, steps=6000, log_every=25, save_every=1000, preview_every=1000)
        config.sampling.num_inference_steps = 16
    return config
