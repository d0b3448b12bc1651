"""Imagen's first super-resolution stage: 64×64 to 256×256 (arXiv:2205.11487, Appendix F), 470 million parameters.

    imagen train --config=configs/imagen_sr_256.py --workdir=runs/sr_256

`:small` has half the channels, for one GPU with 80 GB, with smaller batches and fewer steps; everything else is the
paper's. Costs are in docs/presets.md. Neither has been trained yet; that a batch of 64 fits is an estimate.

The paper contradicts itself: it states 600 million parameters, and its table of the network yields fewer. The network
here is the table's, because a table can be built and a total cannot. A fifth level, channel_mult (1, 2, 4, 8, 8) with
num_res_blocks (2, 4, 8, 8, 8), would have 821 million.

Also from the paper: the schedule, prediction type, Adam and its three numbers, learning rate, warm-up and decay, batch
size, steps, dropout of captions, text encoder, guidance and thresholding. Ours:

- The noise in the low-resolution image also follows the cosine schedule, at uniform levels. Sampling adds none, as for
  the paper's best FID; its best-looking images had 0.1 to 0.3 (`imagen sample --aug_level`).
- Captions of 128 tokens, the conditioning vector of 4 × 128 channels, 8 pooling heads, EMA decay and clipping are those
  of imagen_base_64.py. 128 steps of DDPM: less is left to decide than for the base.
- Parameters are sharded over 8 devices, batches over all.

`shapes` at 256×256 stands in for captioned photographs; configs/folder_base.py and folder_sr.py read your own.
"""

import math

import ml_collections

from imagen_jax.config.load import default_config

VARIANTS = ("", "small")
CHANNELS = {"": 128, "small": 64}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    paper = variant == ""
    config = default_config(network="efficient_unet")
    config.image_size, config.low_res_size = 256, 64
    config.model.update(channels=CHANNELS[variant], channel_mult=(1, 2, 4, 8), num_res_blocks=(2, 4, 8, 8))
    config.model.update(attention_types=((), (), (), ("self+text",)), scan_blocks=not paper)
    config.model.update(head_channels=CHANNELS[variant], mlp_ratio=2, skip_scale=1 / math.sqrt(2))
    config.optimizer.update(b2=0.999)
    config.training.update(batch_size=2048 if paper else 64, keep_checkpoints=3)
    config.training.steps = 2_500_000 if paper else 500_000
    config.mesh.fsdp = 8 if paper else 1
    config.sampling.update(num_inference_steps=128, guidance_scale=8.0)
    return config
