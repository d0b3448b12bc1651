"""The base stage on emoji: their names to pictures of 64×64, on one GPU; `:tiny`, of 32×32, on a CPU.

    imagen prepare --dataset=emoji/white --out=runs/data
    imagen train --config=configs/emoji_base.py:tiny --workdir=runs/emoji/base

The first command is for `:tiny`; the other needs `--dataset=emoji/colours`, and google/flan-t5-base (README.md, "Text
encoders"). It has 101 million parameters, and has not been trained.

`:tiny` learns the pictures of 133 names by heart, food, plants and animals, with the recipe of shapes_base.py: patches
of 4×4 pixels, x under sigmoid weights, Muon. Its conditioning vector is twice as wide, for all of a name has to go
through it or through attention. The text encoder is the untrained one: names are few, and only have to differ. It
takes 8 minutes on one core; docs/recipes.md shows what it draws.
"""

import ml_collections

# Themes, for neighbours by code point are of one kind: from hot dog to popcorn, and from rat to chipmunk.
FOOD_AND_ANIMALS = "train[209:284]+train[387:445]"


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The config; ``variant`` is "" or "tiny"."""
    if variant not in ("", "tiny"):
        raise ValueError(f"configs/emoji_base.py has no variant {variant!r}: give none, or :tiny")
    tiny = variant == "tiny"
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.image_size = 32 if tiny else 64
    config.channels = 3
    config.low_res_size = 0  # no low-resolution input: a base stage

    config.data = ml_collections.ConfigDict()
    config.data.source = "tfds"
    config.data.path = "runs/data/emoji/white" if tiny else "runs/data/emoji/colours"
    config.data.image = "image"
    config.data.captions = ("name",) if tiny else ("captions",)  # features of texts or of classes
    config.data.templates = ("{}",)  # of captions; {} stands for the text
    config.data.split = FOOD_AND_ANIMALS if tiny else "train"
    config.data.validation_split = FOOD_AND_ANIMALS if tiny else "test"  # tiny learns names by heart: it is asked these
    config.data.transform = ml_collections.ConfigDict()
    config.data.transform.crop = "centre"
    config.data.transform.flip = False
    config.data.transform.background = 255
    config.data.transform.upscale = False
    config.data.transform.max_pixels = 2**24
    config.data.max_broken = 0.0
    config.data.crop_size = 0  # whole images
    config.data.buckets = ()  # sizes (height, width) that images of other aspects are trained at
    config.data.bits = 8
    config.data.threads = 2 if tiny else 8
    config.data.prefetch = 64

    config.text = ml_collections.ConfigDict()
    config.text.model = "random" if tiny else "google/flan-t5-base"
    config.text.length = 40 if tiny else 64  # longer than any name
    config.text.dtype = "float32" if tiny else "bfloat16"
    config.text.cache = ""  # a folder of the embed command: training reads embeddings there, and no encoder
    config.text.fingerprint = ""  # of the encoder that is meant, as the embed command says it; "" takes any

    config.model = ml_collections.ConfigDict()
    config.model.network = "unet"
    config.model.patch = 4 if tiny else 1
    config.model.positions = 8 if tiny else 0
    config.model.input_skip = tiny
    config.model.channels = 64 if tiny else 128
    config.model.multipliers = (1,) if tiny else (1, 2, 3, 4)
    config.model.blocks = (0,) if tiny else (2, 2, 2, 2)
    config.model.attention = ((),) if tiny else ((), (), ("self+text",), ("self+text",))
    config.model.middle_attention = ("text", "text") if tiny else ("self+text",)
    config.model.head_channels = 16 if tiny else 64
    config.model.attention_mlp = 2 if tiny else 0
    config.model.embedding_multiplier = 2 if tiny else 4
    config.model.text_heads = 4
    config.model.norm_groups = 8 if tiny else 32
    config.model.skip_scale = 1.0
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
    config.diffusion.prediction = "x" if tiny else "v"
    config.diffusion.weight = "sigmoid"
    config.diffusion.weight_bias = -3.0 if tiny else -1.0
    config.diffusion.min_snr_gamma = 5.0
    config.diffusion.sigma_data = 0.5
    config.diffusion.variance = "fixed"
    config.diffusion.vlb_weight = 1e-3
    config.diffusion.caption_dropout = 0.1
    config.diffusion.unconditional = "zero"

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "muon" if tiny else "adam"
    config.optimizer.learning_rate = 1e-2 if tiny else 1e-4
    config.optimizer.warmup_steps = 60 if tiny else 1000
    config.optimizer.decay_steps = 6000 if tiny else 100_000
    config.optimizer.b1 = 0.95 if tiny else 0.9
    config.optimizer.b2 = 0.99
    config.optimizer.eps = 1e-8
    config.optimizer.first_moment_dtype = "float32"  # "bfloat16" saves two bytes a parameter, of adam and muon
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.optimizer.spike_factor = 0.0  # skips updates whose loss is over so many times the usual; 0: no limit
    config.optimizer.ema_decay = 0.998 if tiny else 0.9999

    config.training = ml_collections.ConfigDict()
    config.training.batch_size = 16 if tiny else 128  # global
    config.training.accumulation = 1  # micro-batches that a step's batch is cut into
    config.training.remat = "none"  # what the backward pass makes again: "none", "dots" or "full", least memory last
    config.training.steps = 6000 if tiny else 100_000
    config.training.log_every = 25 if tiny else 100
    config.training.save_every = 1000 if tiny else 5000
    config.training.preview_every = 1000 if tiny else 5000
    config.training.preview_count = 16
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
    config.sampling.steps = 16 if tiny else 64
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
    config.sampling.bits = 8
    return config
