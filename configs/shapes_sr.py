"""The super-resolution stage on `shapes`: pictures of 32×32 to 64×64, on a CPU.

    imagen train --config=configs/shapes_sr.py --workdir=runs/sr

`:wide` and `:transparent` enlarge what those of shapes_base.py draw, 32×48 to 64×96 and RGBA; `:tiny` is narrower,
attends to the text too, and compiles and runs in seconds, for tests.

The objective was measured among nine, after 250 steps (docs/claims.md): mean squared errors of x̂ are 0.0071 for x under
sigmoid weights and 0.0068 under simple ones, at best 0.0093 for v and 0.0147 for eps.

The picture that it is given says where things are: no positions, no attention. The noise of the augmentation is shifted
to where that picture still shows its shapes: half of the levels have less than 0.13. Sampling adds next to none (0.01),
and takes few steps: with more of them the samples are noisier, and no more often right.
"""

import ml_collections


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The config; ``variant`` is "", "wide", "transparent" or "tiny"."""
    if variant not in ("", "wide", "transparent", "tiny"):
        raise ValueError(f"configs/shapes_sr.py has no variant {variant!r}: give none, :wide, :transparent or :tiny")
    wide, transparent, tiny = (variant == name for name in ("wide", "transparent", "tiny"))
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.image_size = (64, 96) if wide else 64
    config.channels = 4 if transparent else 3
    config.low_res_size = (32, 48) if wide else 32

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
    config.model.positions = 0
    config.model.input_skip = True
    config.model.channels = 16 if tiny else 48
    config.model.multipliers = (1,)
    config.model.blocks = (0,)
    config.model.attention = ((),)
    config.model.middle_attention = ("self+text",) if tiny else ()
    config.model.head_channels = 16
    config.model.attention_mlp = 0
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
    config.diffusion.aug_schedule_shift = 4.0
    config.diffusion.aug_level_distribution = "uniform"
    config.diffusion.aug_level_range = (0.0, 1.0)
    config.diffusion.aug_level_mean = -3.0  # this and the next are those of "lognormal"
    config.diffusion.aug_level_std = 0.5
    config.diffusion.align_corners = False  # where low-resolution pixels lie in the image
    config.diffusion.prediction = "x"
    config.diffusion.weight = "sigmoid"
    config.diffusion.weight_bias = -3.0
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
    config.optimizer.decay_steps = 20 if tiny else 1700
    config.optimizer.b1 = 0.95
    config.optimizer.b2 = 0.99
    config.optimizer.eps = 1e-8
    config.optimizer.first_moment_dtype = "float32"  # "bfloat16" saves two bytes a parameter, of adam and muon
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.optimizer.spike_factor = 0.0  # skips updates whose loss is over so many times the usual; 0: no limit
    config.optimizer.ema_decay = 0.995

    config.training = ml_collections.ConfigDict()
    config.training.batch_size = 8 if tiny else 16  # global
    config.training.accumulation = 1  # micro-batches that a step's batch is cut into
    config.training.remat = "none"  # what the backward pass makes again: "none", "dots" or "full", least memory last
    config.training.steps = 20 if tiny else 1700
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
    config.sampling.steps = 2 if tiny else 4
    config.sampling.guidance = 1.0
    config.sampling.guidance_from = 0.0  # the interval of noise levels, of [0, 1], in which there is guidance
    config.sampling.guidance_to = 1.0
    config.sampling.guidance_rescale = 0.0
    config.sampling.guidance_constant_steps = 0  # after these, in an oscillation, every second step has the low weight
    config.sampling.guidance_low = 1.0
    config.sampling.guidance_oscillates = False
    config.sampling.threshold = "static"
    config.sampling.percentile = 99.5
    config.sampling.aug_level = 0.05
    config.sampling.tile_size = 0  # no tiles: whole images
    config.sampling.tile_overlap = 0
    config.sampling.bits = 8
    return config
