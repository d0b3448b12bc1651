"""Fine-tuning of DeepFloyd IF's second stage: 64×64 to 256×256 images, 1.2 billion parameters.

    imagen train --config=configs/if_256.py --config.data.path=photos --workdir=runs/if_256

It starts from what if_64.py's first command converts.

From its files: the network, the noise schedules, learned variances, the text encoder, the cleaning of captions, and how
images are sampled. It is trained on true low-resolution images with noise of all levels, as it was, and not on the
enlarged target. What else differs from pretraining is as in if_64.py. Never run on the real weights.
"""

import math

import ml_collections

from configs import if_64


def get_config() -> ml_collections.ConfigDict:
    config = if_64.get_config()
    config.image_size, config.low_res_size = 256, 64
    config.model.update(widths=(160, 320, 640, 960, 1280), num_res_blocks=(2, 2, 3, 5, 5), text_dim=1280, cond_dim=1280)
    config.model.update(attention=(False, False, False, True, True), activate_once=True)
    config.model.update(res_scale=math.sqrt(2), middle_scale=math.sqrt(2))
    config.diffusion.update(aug_schedule="discrete_cosine", aug_after_resize=True, align_corners=True)
    config.training.init_from = "runs/if/stage_1"
    config.sampling.update(num_inference_steps=50, guidance_scale=4.0, dynamic_threshold_max=1.0, aug_level=0.251)
    return config
