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

CHANNELS = {"": 512, "400m": 192, "200m": 128}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The config; ``variant`` is "", "400m" or "200m"."""
    if variant not in CHANNELS:
        raise ValueError(f"configs/imagen_base_64.py has no variant {variant!r}: give none, :400m or :200m")
    paper = variant == ""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.image_size = 64
    config.channels = 3
    config.low_res_size = 0  # no low-resolution input: a base stage

    config.data = ml_collections.ConfigDict()
    config.data.source = "shapes"
    config.data.seed = 0
    config.data.examples = 10_000_000
    config.data.split = "train"
    config.data.validation_split = "validation"
    config.data.crop_size = 0  # whole images
    config.data.bits = 8
    config.data.transparent = False
    config.data.threads = 16
    config.data.prefetch = 16

    config.text = ml_collections.ConfigDict()
    config.text.model = "google/t5-v1_1-xxl"  # README.md, "Text encoders", says how to get it
    config.text.length = 128
    config.text.dtype = "bfloat16"
    config.text.cache = ""  # a folder of the embed command: training reads embeddings there, and no encoder
    config.text.fingerprint = ""  # of the encoder that is meant, as the embed command says it; "" takes any

    config.model = ml_collections.ConfigDict()
    config.model.network = "unet"
    config.model.patch = 1
    config.model.positions = 0
    config.model.input_skip = False
    config.model.channels = CHANNELS[variant]
    config.model.multipliers = (1, 2, 3, 4)  # at 64, 32, 16, 8
    config.model.blocks = (3, 3, 3, 3)
    config.model.attention = ((), ("self+text",), ("self+text",), ("self+text",))
    config.model.middle_attention = ("self+text",)
    config.model.head_channels = 64
    config.model.attention_mlp = 0
    config.model.embedding_multiplier = 4
    config.model.text_heads = 8
    config.model.norm_groups = 32
    config.model.skip_scale = 1.0
    config.model.dropout = 0.0
    config.model.scan_blocks = not paper  # blocks that are alike are one that is repeated; docs/pods.md: why not all
    config.model.dtype = "bfloat16"

    config.diffusion = ml_collections.ConfigDict()
    config.diffusion.schedule = "cosine"
    config.diffusion.schedule_shift = 0.0
    config.diffusion.aug_schedule = "cosine"  # of no use in a base stage
    config.diffusion.aug_schedule_shift = 0.0
    config.diffusion.aug_level_distribution = "uniform"
    config.diffusion.aug_level_range = (0.0, 1.0)
    config.diffusion.aug_level_mean = -3.0  # this and the next are those of "lognormal"
    config.diffusion.aug_level_std = 0.5
    config.diffusion.align_corners = False  # where low-resolution pixels lie in the image
    config.diffusion.prediction = "eps"
    config.diffusion.weight = "simple"
    config.diffusion.weight_bias = 0.0
    config.diffusion.min_snr_gamma = 5.0
    config.diffusion.sigma_data = 0.5
    config.diffusion.variance = "fixed"
    config.diffusion.vlb_weight = 1e-3
    config.diffusion.caption_dropout = 0.1
    config.diffusion.unconditional = "zero"

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adafactor"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 10_000
    config.optimizer.decay_steps = 2_500_000 if paper else 500_000
    config.optimizer.b1 = 0.9  # this and the next two are Adam's
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.first_moment_dtype = "float32"  # "bfloat16" saves two bytes a parameter, of adam and muon
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.optimizer.spike_factor = 0.0  # skips updates whose loss is over so many times the usual; 0: no limit
    config.optimizer.ema_decay = 0.9999

    config.training = ml_collections.ConfigDict()
    config.training.batch_size = 2048 if paper else 64  # global
    config.training.accumulation = 1  # micro-batches that a step's batch is cut into
    config.training.remat = "none"  # what the backward pass makes again: "none", "dots" or "full", least memory last
    config.training.steps = 2_500_000 if paper else 500_000
    config.training.log_every = 100
    config.training.save_every = 5000
    config.training.preview_every = 10_000
    config.training.preview_count = 16
    config.training.keep_checkpoints = 3
    config.training.keep_best = False  # beside the latest, the one of the least held-out loss at a preview
    config.training.on_failed_save = "stop"  # or "go on": what a full disk does to the run
    config.training.max_bad_steps = 10  # in a row whose updates were skipped, after which the run ends
    config.training.stall_seconds = 1800  # after which a step that does not end, ends the run
    config.training.allow_batch_change = False  # whether a run may go on with another batch_size

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 8 if paper else 1
    config.mesh.spatial = 1  # devices that share each image, some rows each
    # (regular expression of paths, mesh axis of each dimension) …: the first found counts; else the largest is split
    config.sharding_rules = ()

    config.sampling = ml_collections.ConfigDict()
    config.sampling.sampler = "ddpm"
    config.sampling.grid = "uniform"
    config.sampling.variance = "small"
    config.sampling.eta = 0.0
    config.sampling.churn = 0.0
    config.sampling.churn_range = (0.05, 50.0)
    config.sampling.churn_noise = 1.003
    config.sampling.steps = 256
    config.sampling.guidance = 1.35
    config.sampling.guidance_from = 0.0  # the interval of noise levels, of [0, 1], in which there is guidance
    config.sampling.guidance_to = 1.0
    config.sampling.guidance_rescale = 0.0
    config.sampling.guidance_constant_steps = 0  # after these, in an oscillation, every second step has the low weight
    config.sampling.guidance_low = 1.0
    config.sampling.guidance_oscillates = False
    config.sampling.threshold = "dynamic"
    config.sampling.percentile = 99.5
    config.sampling.aug_level = 0.0
    config.sampling.tile_size = 0  # no tiles: whole images
    config.sampling.tile_overlap = 0
    config.sampling.bits = 8
    return config
