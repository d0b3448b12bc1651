"""The super-resolution stage on a folder of images with captions, for one GPU: 64×64 to 256×256.

    imagen train --config=configs/folder_sr.py --workdir=runs/sr --config.data.path=DIR

docs/data.md says how captions lie beside images, and what becomes of those that are broken or of other sizes. Images
smaller than 256×256 count as broken, unless data.transform.upscale is set.

The network is that of imagen_sr_256.py:small; it predicts v, for eps tints pictures (arXiv:2210.02303, Section 2.4).
It has not been trained at this size yet: that a batch of 64 fits into 80 GB is an estimate. `:tiny` is so narrow that
it compiles and runs in seconds, for tests; its text encoder knows no words.
"""

import math

import ml_collections


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The config; ``variant`` is "" or "tiny"."""
    if variant not in ("", "tiny"):
        raise ValueError(f"configs/folder_sr.py has no variant {variant!r}: give none, or :tiny")
    tiny = variant == "tiny"
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.image_size = 32 if tiny else 256
    config.channels = 3
    config.low_res_size = 16 if tiny else 64

    config.data = ml_collections.ConfigDict()
    config.data.source = "folder"
    config.data.path = ""  # yours: --config.data.path=DIR, or gs://BUCKET/DIR
    config.data.caption_column = "text"  # of metadata.jsonl, .csv or .parquet
    config.data.split = "train"
    config.data.validation_split = "validation"
    config.data.validation_share = 0.25 if tiny else 0.01  # of the images, by hashes of their paths
    config.data.max_broken = 0.01  # the share of images that cannot be read at which a run stops
    config.data.crop_size = 0  # whole images
    config.data.buckets = ()  # sizes (height, width) that images of other aspects are trained at
    config.data.bits = 8
    config.data.threads = 2 if tiny else 16
    config.data.prefetch = 16
    config.data.transform = ml_collections.ConfigDict()
    config.data.transform.crop = "centre"  # of other aspects than image_size has; or "random"
    config.data.transform.flip = False  # True mirrors half of them: then captions must not say left or right
    config.data.transform.background = 255  # what clear pixels show: a gray level, or (R, G, B)
    config.data.transform.upscale = False  # True enlarges images that are smaller than image_size
    config.data.transform.max_pixels = 50_000_000  # of an image; a thread takes up to 12 bytes for each

    config.text = ml_collections.ConfigDict()
    config.text.model = "random" if tiny else "google/flan-t5-xl"  # README.md, "Text encoders", says how to get it
    config.text.length = 24 if tiny else 128
    config.text.dtype = "float32" if tiny else "bfloat16"
    config.text.cache = ""  # a folder of the embed command: training reads embeddings there, and no encoder
    config.text.fingerprint = ""  # of the encoder that is meant, as the embed command says it; "" takes any

    config.model = ml_collections.ConfigDict()
    config.model.network = "efficient_unet"
    config.model.patch = 4 if tiny else 1
    config.model.positions = 0
    config.model.input_skip = False
    config.model.channels = 16 if tiny else 64
    config.model.multipliers = (1,) if tiny else (1, 2, 4, 8)  # at 128, 64, 32, 16
    config.model.blocks = (1,) if tiny else (2, 4, 8, 8)
    config.model.attention = ((),) if tiny else ((), (), (), ("self+text",))
    config.model.head_channels = 8 if tiny else 64  # 8 heads
    config.model.attention_mlp = 2
    config.model.embedding_multiplier = 1 if tiny else 4
    config.model.text_heads = 4 if tiny else 8
    config.model.norm_groups = 8 if tiny else 32
    config.model.skip_scale = 1 / math.sqrt(2)
    config.model.dropout = 0.0
    config.model.scan_blocks = not tiny  # blocks of a level that are alike are one that is repeated: compiles faster
    config.model.dtype = "float32" if tiny else "bfloat16"

    config.diffusion = ml_collections.ConfigDict()
    config.diffusion.schedule = "cosine"
    config.diffusion.schedule_shift = 0.0
    config.diffusion.aug_schedule = "cosine"
    config.diffusion.aug_schedule_shift = 0.0
    config.diffusion.aug_level_distribution = "uniform"
    config.diffusion.aug_level_range = (0.0, 1.0)
    config.diffusion.aug_level_mean = -3.0  # this and the next are those of "lognormal"
    config.diffusion.aug_level_std = 0.5
    config.diffusion.align_corners = False  # where low-resolution pixels lie in the image
    config.diffusion.prediction = "v"
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
    config.optimizer.learning_rate = 1e-2 if tiny else 1e-4
    config.optimizer.warmup_steps = 10 if tiny else 5000
    config.optimizer.decay_steps = 20 if tiny else 300_000
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99
    config.optimizer.eps = 1e-8
    config.optimizer.first_moment_dtype = "float32"  # "bfloat16" saves two bytes a parameter, of adam and muon
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.optimizer.spike_factor = 0.0  # skips updates whose loss is over so many times the usual; 0: no limit
    config.optimizer.ema_decay = 0.95 if tiny else 0.9999

    config.training = ml_collections.ConfigDict()
    config.training.batch_size = 8 if tiny else 64  # global
    config.training.accumulation = 1  # micro-batches that a step's batch is cut into
    config.training.remat = "none"  # what the backward pass makes again: "none", "dots" or "full", least memory last
    config.training.steps = 20 if tiny else 300_000
    config.training.log_every = 5 if tiny else 100
    config.training.save_every = 10 if tiny else 2000
    config.training.preview_every = 10 if tiny else 5000
    config.training.preview_count = 4 if tiny else 16
    config.training.keep_checkpoints = 2
    config.training.keep_best = False  # beside the latest, the one of the least held-out loss at a preview
    config.training.on_failed_save = "stop"  # or "go on": what a full disk does to the run
    config.training.max_bad_steps = 10  # in a row whose updates were skipped, after which the run ends
    config.training.stall_seconds = 1800  # after which a step that does not end, ends the run
    config.training.allow_batch_change = False  # whether a run may go on with another batch_size

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.spatial = 1  # devices that share each image, some rows each
    # (regular expression of paths, mesh axis of each dimension) …: the first found counts; else the largest is split
    config.sharding_rules = ()

    config.sampling = ml_collections.ConfigDict()
    config.sampling.sampler = "ddpm" if tiny else "dpm_solver"
    config.sampling.grid = "uniform"
    config.sampling.variance = "small"
    config.sampling.eta = 0.0
    config.sampling.churn = 0.0
    config.sampling.churn_range = (0.05, 50.0)
    config.sampling.churn_noise = 1.003
    config.sampling.steps = 2 if tiny else 32
    config.sampling.guidance = 1.5
    config.sampling.guidance_from = 0.0  # the interval of noise levels, of [0, 1], in which there is guidance
    config.sampling.guidance_to = 1.0
    config.sampling.guidance_rescale = 0.0
    config.sampling.guidance_constant_steps = 0  # after these, in an oscillation, every second step has the low weight
    config.sampling.guidance_low = 1.0
    config.sampling.guidance_oscillates = False
    config.sampling.threshold = "dynamic"
    config.sampling.percentile = 99.5
    config.sampling.aug_level = 0.1
    config.sampling.tile_size = 0  # no tiles: whole images
    config.sampling.tile_overlap = 0
    config.sampling.bits = 8
    return config
