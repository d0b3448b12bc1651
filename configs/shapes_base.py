"""The base stage on `shapes`: captions to pictures of 32×32, on a CPU.

    imagen train --config=configs/shapes_base.py --workdir=runs/base

`:wide` draws 32×48 (height × width), `:transparent` things without a background, as RGBA; `:tiny` is narrower, and
compiles and runs in seconds, for tests.

How well it draws after some minutes depends on the number of updates, not on the size of the network: hence one level
of patches of 4×4 pixels, few channels and batches of 16. Pixels that know their place (model.positions) find the words
about it by two layers of attention to the text; residual blocks then draw what these say.

Guidance makes more right of combinations that training never showed; weight 3 bends edges. After its 6,000 updates,
seven minutes on 2 cores beside super-resolution, 94% of held-out captions are right in all they claim. Of 6, 8, 12 and
24 sampling steps fewer leave less grain; 6, 8 and 12 are right as often.

The bias of the weight says how much more strong noise counts than little. Of 1,024 held-out captions, after 7,600
updates with a bias of -2, -3, -4.5 and -6 (--config.diffusion.weight_bias), 92, 90, 95 and 92% were right in all, and
with -4.5 and another seed 94%: fine detail is left to super-resolution.

The objective is that of least error among nine, measured after 700 steps with a bias of -3 (docs/claims.md): mean
squared errors of x̂ are 0.0149 for x under sigmoid weights, 0.0153 for v under simple ones, 0.0195 for the paper's eps
under simple ones.
"""

import ml_collections


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The config; ``variant`` is "", "wide", "transparent" or "tiny"."""
    if variant not in ("", "wide", "transparent", "tiny"):
        raise ValueError(f"configs/shapes_base.py has no variant {variant!r}: give none, :wide, :transparent or :tiny")
    wide, transparent, tiny = (variant == name for name in ("wide", "transparent", "tiny"))
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.image_size = (32, 48) if wide else 32
    config.channels = 4 if transparent else 3
    config.low_res_size = 0  # no low-resolution input: a base stage

    config.data = ml_collections.ConfigDict()
    config.data.source = "shapes"
    config.data.seed = 0
    config.data.examples = 10_000_000
    config.data.split = "train"
    config.data.validation_split = "validation"
    config.data.crop_size = 0  # whole images
    config.data.bits = 8
    config.data.transparent = transparent
    config.data.threads = 2
    config.data.prefetch = 512

    config.text = ml_collections.ConfigDict()
    config.text.model = "shapes"
    config.text.length = 96  # room for the longest caption of the grammar
    config.text.dtype = "float32"
    config.text.cache = ""  # a folder of the embed command: training reads embeddings there, and no encoder
    config.text.fingerprint = ""  # of the encoder that is meant, as the embed command says it; "" takes any

    config.model = ml_collections.ConfigDict()
    config.model.network = "unet"
    config.model.patch = 4
    config.model.positions = 8
    config.model.input_skip = True
    config.model.channels = 16 if tiny else 64
    config.model.multipliers = (1,)
    config.model.blocks = (0,)
    config.model.attention = ((),)
    config.model.middle_attention = ("self+text",) if tiny else ("text", "text")
    config.model.head_channels = 16
    config.model.attention_mlp = 2
    config.model.embedding_multiplier = 1
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
    config.diffusion.prediction = "x"
    config.diffusion.weight = "sigmoid"
    config.diffusion.weight_bias = -4.5
    config.diffusion.min_snr_gamma = 5.0
    config.diffusion.sigma_data = 0.5
    config.diffusion.variance = "fixed"
    config.diffusion.vlb_weight = 1e-3
    config.diffusion.caption_dropout = 0.1
    config.diffusion.unconditional = "zero"

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup_steps = 10 if tiny else 60
    config.optimizer.decay_steps = 20 if tiny else 6000
    config.optimizer.b1 = 0.95
    config.optimizer.b2 = 0.99
    config.optimizer.eps = 1e-8
    config.optimizer.first_moment_dtype = "float32"  # "bfloat16" saves two bytes a parameter, of adam and muon
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.optimizer.spike_factor = 0.0  # skips updates whose loss is over so many times the usual; 0: no limit
    config.optimizer.ema_decay = 0.998

    config.training = ml_collections.ConfigDict()
    config.training.batch_size = 8 if tiny else 16  # global
    config.training.accumulation = 1  # micro-batches that a step's batch is cut into
    config.training.remat = "none"  # what the backward pass makes again: "none", "dots" or "full", least memory last
    config.training.steps = 20 if tiny else 6000
    config.training.log_every = 5 if tiny else 25
    config.training.save_every = 10 if tiny else 1000
    config.training.preview_every = 10 if tiny else 1000
    config.training.preview_count = 8 if tiny else 16
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
    config.sampling.steps = 4 if tiny else 8
    config.sampling.guidance = 1.5
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
    config.sampling.bits = 8
    return config
