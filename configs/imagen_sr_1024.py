"""Imagen's second super-resolution stage: 256×256 to 1024×1024 (arXiv:2205.11487, Appendix F), 470 million parameters.

    imagen train --config=configs/imagen_sr_1024.py --workdir=runs/sr_1024

`:small` has half the channels, for one GPU with 80 GB, with smaller batches and fewer steps; everything else is the
paper's. Costs are in docs/presets.md. Neither has been trained yet; that a batch of 64 fits is an estimate.

Training sees 256×256 crops of 1024×1024 images and the same places at a quarter of the size (64×64), as in the paper.
Sampling enlarges full images of 256×256, or in tiles where those do not fit into memory (`--tile_size=256
--tile_overlap=64`). So nothing in the network may depend on the size of its input: there is no self-attention, and
model.positions must stay 0.

The paper contradicts itself: it states 400 million parameters, and gives this network the table of the one for 256×256
without self-attention, which yields more. The network here is the table's.

Also from the paper: the schedule, linear betas from 1e-4 to 0.02, the prediction type, Adam and its three numbers,
learning rate, warm-up and decay, batch size, steps, dropout of captions, text encoder and thresholding. Ours:

- Cross-attention has the 8 heads and the hidden layer of 2 × the channels that the paper gives for 256×256.
- The guidance scale is that of the previous stage, 8, and sampling takes 32 steps of DDPM: the paper has neither.
- The noise in the low-resolution image, the text length, conditioning vector, pooling heads, EMA decay, clipping and
  mesh are those of imagen_sr_256.py.

`shapes` at 1024×1024 stands in for captioned photographs; configs/folder_base.py and folder_sr.py read your own.
"""

import math

import ml_collections

from imagen_jax.config.load import default_config

VARIANTS = ("", "small")
CHANNELS = {"": 128, "small": 64}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    paper = variant == ""
    config = default_config(network="efficient_unet")
    config.image_size, config.low_res_size = 1024, 256
    config.data.crop_size = 256
    config.model.update(channels=CHANNELS[variant], channel_mult=(1, 2, 4, 8), num_res_blocks=(2, 4, 8, 8))
    config.model.update(attention_types=((), (), (), ("text",)), scan_blocks=not paper)
    config.model.update(head_channels=CHANNELS[variant], mlp_ratio=2, skip_scale=1 / math.sqrt(2))
    config.diffusion.schedule = "linear"
    config.optimizer.update(b2=0.999)
    config.training.update(batch_size=2048 if paper else 64, preview_count=4, keep_checkpoints=3)
    config.training.steps = 2_500_000 if paper else 500_000
    config.mesh.fsdp = 8 if paper else 1
    config.sampling.update(num_inference_steps=32, guidance_scale=8.0)
    return config
