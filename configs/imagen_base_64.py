"""Imagen's base stage: captions to pictures of 64×64 (arXiv:2205.11487, Appendix F), 2.4 billion parameters.

    imagen train --config=configs/imagen_base_64.py --workdir=runs/base_64

`:400m` and `:200m` are narrower members of the family for one GPU of 80 GB, with smaller batches and fewer steps; all
else is the paper's. docs/presets.md has the costs of each. None has been trained yet; that a batch of 64 fits is an
estimate.

Of the paper are the network's channels, blocks, attention and head size, the schedule, the prediction, optimizer, rate,
warm-up and decay, batch, steps, share of dropped captions, the encoder, the guidance and the thresholding. The rest is
ours:

- Captions of 128 tokens: the paper gives no length.
- A conditioning vector of 4 × 512 and residual blocks as of ADM, which the paper names as its source; 8 pooling heads.
- The EMA's decay 0.9999 is the usual one, and so is the clipping of gradients at norm 1.
- Adafactor's own scaling of updates by the size of a parameter is off: outputs that start at zero would stay there.
- 256 steps of DDPM: the paper's text has no number. Its guidance, 1.35, is that of the best FID; more obeys prompts
  better.
- Parameters are split over 8 devices, so that weights, gradients, EMA and text encoder take 1.2 GB each on a device;
  batches are split over all devices.

`shapes`, drawn at 64×64, stands in for captioned photographs; configs/folder_base.py, folder_sr.py read yours.
"""

import ml_collections

from imagen_jax.config.load import default_config

VARIANTS = ("", "400m", "200m")
CHANNELS = {"": 512, "400m": 192, "200m": 128}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    paper = variant == ""
    config = default_config()
    config.model.update(channels=CHANNELS[variant], scan_blocks=not paper)  # docs/pods.md: why not all are scanned
    config.optimizer.update(name="adafactor", b2=0.999, decay_steps=2_500_000 if paper else 500_000)
    config.training.update(batch_size=2048 if paper else 64, keep_checkpoints=3)
    config.training.steps = 2_500_000 if paper else 500_000
    config.mesh.fsdp = 8 if paper else 1
    config.sampling.update(num_inference_steps=256, guidance_scale=1.35)
    return config
