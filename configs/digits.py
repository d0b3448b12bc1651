"""scikit-learn's handwritten digits at their own 8×8, one channel, one stage: real pictures on a CPU.

imagen train --config=configs/digits.py --workdir=runs/digits
imagen evaluate --stages=runs/digits --config=configs/digits_eval.py --out=runs/digits

`:sixteen_bit` reads and draws pictures of 16 bits.
"""

import ml_collections


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The config; ``variant`` is "" or "sixteen_bit"."""
    if variant not in ("", "sixteen_bit"):
        raise ValueError(f"configs/digits.py has no variant {variant!r}: give none, or :sixteen_bit")
    bits = 16 if variant == "sixteen_bit" else 8
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.image_size = 8
    config.channels = 1
    config.low_res_size = 0  # no low-resolution input: a base stage

    config.data = ml_collections.ConfigDict()
    config.data.source = "digits"
    config.data.split = "train"
    config.data.validation_split = "test"
    config.data.crop_size = 0  # whole images
    config.data.bits = bits
    config.data.threads = 2
    config.data.prefetch = 256

    config.text = ml_collections.ConfigDict()
    config.text.model = "random"  # ten names need no trained encoder
    config.text.length = 32
    config.text.dtype = "float32"
    config.text.cache = ""  # a folder of the embed command: training reads embeddings there, and no encoder
    config.text.fingerprint = ""  # of the encoder that is meant, as the embed command says it; "" takes any

    config.model = ml_collections.ConfigDict()
    config.model.network = "unet"
    config.model.patch = 1
    config.model.positions = 0
    config.model.input_skip = True
    config.model.channels = 32
    config.model.multipliers = (1, 2)
    config.model.blocks = (1, 1)
    config.model.attention = ((), ("self+text",))
    config.model.middle_attention = ("self+text",)
    config.model.head_channels = 32
    config.model.attention_mlp = 0
    config.model.embedding_multiplier = 4
    config.model.text_heads = 4
    config.model.norm_groups = 8
    config.model.skip_scale = 1.0
    config.model.dropout = 0.0
    config.model.scan_blocks = False  # blocks of a level that are alike are one that is repeated: compiles faster
    config.model.dtype = "float32"

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
    config.diffusion.weight = "sigmoid"
    config.diffusion.weight_bias = 0.0
    config.diffusion.min_snr_gamma = 5.0
    config.diffusion.sigma_data = 0.5
    config.diffusion.variance = "fixed"
    config.diffusion.vlb_weight = 1e-3
    config.diffusion.caption_dropout = 0.1
    config.diffusion.unconditional = "zero"

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.decay_steps = 2000
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99
    config.optimizer.eps = 1e-8
    config.optimizer.first_moment_dtype = "float32"  # "bfloat16" saves two bytes a parameter, of adam and muon
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.optimizer.spike_factor = 0.0  # skips updates whose loss is over so many times the usual; 0: no limit
    config.optimizer.ema_decay = 0.995

    config.training = ml_collections.ConfigDict()
    config.training.batch_size = 64  # global
    config.training.accumulation = 1  # micro-batches that a step's batch is cut into
    config.training.remat = "none"  # what the backward pass makes again: "none", "dots" or "full", least memory last
    config.training.steps = 2000
    config.training.log_every = 20
    config.training.save_every = 500
    config.training.preview_every = 500
    config.training.preview_count = 20
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
    config.sampling.sampler = "ddpm"
    config.sampling.grid = "uniform"
    config.sampling.variance = "small"
    config.sampling.eta = 0.0
    config.sampling.churn = 0.0
    config.sampling.churn_range = (0.05, 50.0)
    config.sampling.churn_noise = 1.003
    config.sampling.steps = 50
    config.sampling.guidance = 2.0
    config.sampling.guidance_from = 0.0  # the interval of noise levels, of [0, 1], in which there is guidance
    config.sampling.guidance_to = 1.0
    config.sampling.guidance_rescale = 0.0
    config.sampling.guidance_constant_steps = 0  # after these, in an oscillation, every second step has the low weight
    config.sampling.guidance_low = 1.0
    config.sampling.guidance_oscillates = False
    config.sampling.threshold = "static"
    config.sampling.percentile = 99.5
    config.sampling.aug_level = 0.0
    config.sampling.tile_size = 0  # no tiles: whole images
    config.sampling.tile_overlap = 0
    config.sampling.bits = bits
    return config
