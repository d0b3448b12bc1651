"""Imagen's second super-resolution stage: 256×256 to 1024×1024 (arXiv:2205.11487, Appendix F), 470 million parameters.

    imagen train --config=configs/imagen_sr_1024.py --workdir=runs/sr_1024

`:small` has half the channels, for one GPU of 80 GB, with smaller batches and fewer steps; all else is the paper's.
docs/presets.md has the costs. Neither has been trained yet; that a batch of 64 fits is an estimate.

Training sees crops of 256×256 from images of 1024×1024, and their places at a quarter of the size (64×64), as in the
paper; sampling enlarges a whole picture of 256×256, or tile by tile where that does not fit into memory
(`--tile_size=256 --tile_overlap=64`). So nothing in the network may depend on the size of what it sees: there is no
self-attention, and model.positions has to stay 0.

The paper contradicts itself: it says 400 million parameters, and gives this network the same table as the one for
256×256, less self-attention, which makes more. The network here is the table's.

Of the paper are also the schedule, linear betas from 1e-4 to 0.02, the prediction, Adam and its three numbers, rate,
warm-up and decay, batch, steps, share of dropped captions, encoder and thresholding. The rest is ours:

- Cross-attention has the 8 heads and the hidden layer of 2 × the channels that the paper gives for 256×256.
- Guidance is that of the stage before, 8, and 32 steps of DDPM do: the paper has neither figure.
- The noise in the low-resolution picture, the text's length, the conditioning vector, the pooling heads, the EMA's
  decay, the clipping and the mesh are those of imagen_sr_256.py.

`shapes`, drawn at 1024×1024, stands in for captioned photographs; configs/folder_base.py, folder_sr.py read yours.
"""

import math

import ml_collections

CHANNELS = {"": 128, "small": 64}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The config; ``variant`` is "" or "small"."""
    if variant not in CHANNELS:
        raise ValueError(f"configs/imagen_sr_1024.py has no variant {variant!r}: give none, or :small")
    paper = variant == ""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.image_size = 1024
    config.channels = 3
    config.low_res_size = 256

    config.data = ml_collections.ConfigDict()
    config.data.source = "shapes"
    config.data.seed = 0
    config.data.examples = 10_000_000
    config.data.split = "train"
    config.data.validation_split = "validation"
    config.data.crop_size = 256  # and 64 of the low-resolution image
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
    config.model.network = "efficient_unet"
    config.model.patch = 1
    config.model.positions = 0
    config.model.input_skip = False
    config.model.channels = CHANNELS[variant]
    config.model.multipliers = (1, 2, 4, 8)  # at 128, 64, 32, 16 of a crop, 4 times that of an image
    config.model.blocks = (2, 4, 8, 8)
    config.model.attention = ((), (), (), ("text",))
    config.model.head_channels = CHANNELS[variant]  # 8 heads
    config.model.attention_mlp = 2
    config.model.embedding_multiplier = 4
    config.model.text_heads = 8
    config.model.norm_groups = 32
    config.model.skip_scale = 1 / math.sqrt(2)
    config.model.dropout = 0.0
    config.model.scan_blocks = not paper  # blocks that are alike are one that is repeated; docs/pods.md: why not all
    config.model.dtype = "bfloat16"

    config.diffusion = ml_collections.ConfigDict()
    config.diffusion.schedule = "linear"
    config.diffusion.schedule_shift = 0.0
    config.diffusion.aug_schedule = "cosine"
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
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 10_000
    config.optimizer.decay_steps = 2_500_000 if paper else 500_000
    config.optimizer.b1 = 0.9
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
    config.training.preview_count = 4
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
    config.sampling.steps = 32
    config.sampling.guidance = 8.0
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
