"""Fine-tuning of DeepFloyd IF's first stage: captions to 64×64 images, 4.3 billion parameters.

    imagen convert --from=DeepFloyd/IF-I-XL-v1.0,DeepFloyd/IF-II-L-v1.0 --variant=fp16 --out=runs/if
    imagen train --config=configs/if_64.py --config.data.path=photos --workdir=runs/if_64

`:l` and `:m` are its smaller networks, of 935 and 372 million parameters. training.init_from is what was converted;
docs/deepfloyd_if.md says how, and which memory a run needs.

From its files: the network, the noise schedule, learned variances, the text encoder, the cleaning of captions, and how
images are sampled. Its variances are trained too: a loss without the variational bound would leave them behind. Ours: a
low learning rate without decay, Adafactor, whose state is small, recomputation of all blocks, and all devices sharing
all parameters. Never run on the real weights: nobody here may download them.
"""

import ml_collections

from imagen_jax.config.load import default_config

VARIANTS = ("", "l", "m")
WIDTH = {"": 704, "l": 320, "m": 192}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    config = default_config(source="folder", network="if_unet")
    config.data.path = ""  # yours: --config.data.path=DIR, or gs://BUCKET/DIR
    config.text.update(model="runs/if/text_encoder", length=77, padding="encoded", cleaning="if")
    width = WIDTH[variant]
    config.model.update(widths=tuple(width * mult for mult in (1, 2, 3, 4)), text_dim=4 * width)
    config.diffusion.update(schedule="discrete_cosine", variance_type="learned", null_text="empty")
    config.optimizer.update(name="adafactor", learning_rate=1e-5, end_learning_rate=1e-5, warmup_steps=500)
    config.training.update(init_from="runs/if/stage_0", batch_size=64, steps=10_000, save_every=1000, remat="full")
    config.training.preview_every = 1000
    config.mesh.update(data=1, fsdp=-1)
    config.sampling.update(timestep_spacing="leading", num_inference_steps=100, guidance_scale=7.0)
    config.sampling.update(variance_type="learned", dynamic_threshold_percentile=95.0, dynamic_threshold_max=1.5)
    return config
