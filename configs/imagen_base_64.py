"""Imagen's base stage: captions to 64×64 images (arXiv:2205.11487, Appendix F), 2.4 billion parameters.

    imagen train --config=configs/imagen_base_64.py --workdir=runs/base_64

`:400m` and `:200m` are narrower, for one GPU with 80 GB, with smaller batches and fewer steps; everything else is the
paper's. Costs are in docs/presets.md. None has been trained yet; that a batch of 64 fits is an estimate.

From the paper: channels, blocks, attention and head size of the network, the schedule, prediction type, optimizer,
learning rate, warm-up and decay, batch size, steps, dropout of captions, text encoder, guidance and thresholding. Ours:

- Captions have 128 tokens: the paper gives no length.
- The conditioning vector has 4 × 512 channels, and residual blocks are those of ADM, which the paper names as its
  source; text pooling has 8 heads.
- The EMA decay of 0.9999 and clipping of gradients at norm 1 are common choices.
- Adafactor does not scale updates by the size of parameters: outputs that start at zero would stay there.
- 256 steps of DDPM: the paper's text has no number. Its guidance scale, 1.35, is that of the best FID; higher scales
  follow prompts better.
- Parameters are sharded over 8 devices, so that weights, gradients, EMA and text encoder take 1.2 GB each per device;
  batches are split over all devices.

`shapes` at 64×64 stands in for captioned photographs; configs/folder_base.py and folder_sr.py read your own.
"""

import ml_collections

from imagen_jax.config.load import default_config

VARIANTS = ("", "400m", "200m")
CHANNELS = {"": 512, "400m": 192, "200m": 128}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    paper = variant == ""
    config = default_config()
    config.model.update(channels=CHANNELS[variant], scan_blocks=not paper)  # docs/pods.md: why not all are scanned
    config.optimizer.update(name="adafactor", b2=0.999)
    config.training.update(batch_size=2048 if paper else 64, keep_checkpoints=3)
    config.training.steps = 2_500_000 if paper else 500_000
    config.mesh.fsdp = 8 if paper else 1
    config.sampling.update(num_inference_steps=256, guidance_scale=1.35)
    return config
