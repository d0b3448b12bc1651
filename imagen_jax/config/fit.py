"""How the values of a stage's config fit together; each value by itself is right already."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from imagen_jax.diffusion.noise_augmentation import AugLevelDistribution
from imagen_jax.diffusion.random_masks import MASK_KINDS, MaskDistribution
from imagen_jax.diffusion.tiling import check_tiles
from imagen_jax.errors import ConfigError, collect_errors
from imagen_jax.images.array import Size, format_size
from imagen_jax.parallel.sharding import check_sharding_rules

if TYPE_CHECKING:
    from imagen_jax.config.schema import (
        InpaintingConfig,
        ModelConfig,
        OptimizerConfig,
        SamplingConfig,
        StageConfig,
        TrainingConfig,
    )

FILE_CHANNELS = (1, 3, 4)  # what image files are decoded to


def check_stage(config: StageConfig) -> None:
    """Raises ConfigError with everything that does not fit together."""
    checks = [
        partial(check_sharding_rules, config.sharding_rules),
        partial(_check_levels, config.model),
        partial(_check_multiple, "image_size", config.image_hw, config),
        partial(_check_heads, config.model),
        partial(_check_pool_heads, config.model),
        partial(_check_if_unet, config),
        partial(_check_vae, config),
        partial(_check_transform, config),
        partial(_check_buckets, config),
        partial(_check_optimizer, config.optimizer),
        partial(_check_training, config.training),
        partial(_check_evaluation, config),
        partial(_check_adapter, config),
        partial(_check_masks, config.inpainting),
        partial(_check_sampler, config),
        partial(_check_tiles, config),
        partial(_check_aug_level, config),
        partial(_check_low_res_vae, config),
        partial(_check_codec, config),
        partial(_check_latents, config),
    ]
    if config.is_super_resolution:
        checks.append(partial(_check_enlargement, config))
    if any(config.data.crop_hw):
        checks.append(partial(_check_crops, config))
    collect_errors(*checks)


def _check_levels(model: ModelConfig) -> None:
    channels, attention = model.level_keys
    levels = len(getattr(model, channels))
    per_level = ("num_res_blocks", attention, *(["latent_groups"] if model.network == "hvae" else []))
    wrong = [
        f"model.{name} has {len(getattr(model, name))} entries for the {levels} levels of model.{channels}: give one "
        "per level"
        for name in per_level
        if len(getattr(model, name)) != levels
    ]
    if wrong:
        raise ConfigError(*wrong)


def _check_if_unet(config: StageConfig) -> None:
    model, problems = config.model, []
    if model.network != "if_unet":
        return
    for width in sorted(set(model.widths)):
        if width % model.num_groups:
            problems.append(
                f"model.num_groups {model.num_groups} does not divide the {width} channels of a level: give a divisor"
            )
    if config.text.padding != "encoded":
        problems.append(
            f"text.padding {config.text.padding!r} leaves zeros where model.network 'if_unet' reads the embeddings of "
            "padding: set it to 'encoded'"
        )
    if problems:
        raise ConfigError(*problems)


def _check_vae(config: StageConfig) -> None:
    """Checks that a VAE has latents and no settings of diffusion, and that a diffusion network has none of a VAE."""
    model, problems = config.model, []
    if model.network != "hvae":
        given = [f"vae.{name}" for name in type(config.vae).model_fields if _is_given(config.vae, name)]
        if given:
            problems.append(
                f"{', '.join(given)} has no effect with model.network {model.network!r}: set model.network='hvae', or "
                "leave it out"
            )
    else:
        if not model.latent_groups or not model.latent_groups[-1]:
            problems.append(
                f"model.latent_groups {model.latent_groups} has no group at the last level, where the decoder begins: "
                "give it one or more"
            )
        if config.vae.kl_balancing and not config.vae.kl_warmup_steps:
            problems.append(
                "vae.kl_balancing weighs groups during warm-up, and vae.kl_warmup_steps is 0: raise it, or set "
                "kl_balancing to False"
            )
        if config.sampling.guidance_scale not in (0, 1):
            problems.append(
                f"sampling.guidance_scale {config.sampling.guidance_scale:g} is of diffusion, and a VAE has no "
                "guidance: set it to 1, or to 0 to sample without text"
            )
        for name, used, off in (
            ("inpainting.enabled", config.inpainting.enabled, "False"),
            ("sampling.tile_size", any(config.sampling.tile_hw), "0"),
            ("adapter.kind", config.adapter.enabled, "'none'"),
        ):
            if used:
                problems.append(f"{name} needs a diffusion network, and model.network is 'hvae': set it to {off}")
    if problems:
        raise ConfigError(*problems)


def _check_heads(model: ModelConfig) -> None:
    if model.network == "kl_vae":
        return  # there is one head, of any width
    # a wrong number of entries is reported by _check_levels
    for channels in sorted(model.attending_widths):
        if channels % model.head_channels:
            raise ConfigError(
                f"model.head_channels {model.head_channels} does not divide the {channels} channels of a level: "
                "give a divisor"
            )


def _check_pool_heads(model: ModelConfig) -> None:
    if model.network == "if_unet" or model.network == "kl_vae":
        return  # one pools at the width of the text embeddings, and the other sees no text
    width = model.channels * model.cond_dim_mult
    if width % model.text_pool_heads:
        raise ConfigError(
            f"model.text_pool_heads {model.text_pool_heads} does not divide {width}, the width of the conditioning "
            "vector (model.channels × model.cond_dim_mult): give a divisor"
        )


def _check_multiple(name: str, size: Size, config: StageConfig) -> None:
    model, multiple = config.model, config.side_multiple
    if any(side < 1 or side % multiple for side in size):
        levels = model.level_keys[0]
        patches = f"model.patch_size {model.patch_size} and " if hasattr(model, "patch_size") else ""
        if config.codec.has_latents:
            patches = f"latents of 1/{config.latent_factor} of the size (codec.model.channel_mult), {patches}"
        raise ConfigError(
            f"{name} {format_size(size)} is not a multiple of {multiple}, as {patches}the "
            f"{len(getattr(model, levels))} levels of model.{levels} need"
        )


def _check_enlargement(config: StageConfig) -> None:
    size, low = config.image_hw, config.low_res_hw
    if config.refines:
        return  # see _check_low_res_vae
    if not all(0 < small < large for small, large in zip(low, size, strict=True)):
        refines = ", and diffusion.low_res_vae one that refines images" if low == size else ""
        raise ConfigError(
            f"low_res_size {format_size(low)} must be below image_size {format_size(size)}; 0 makes a base stage"
            f"{refines}"
        )
    if low[0] * size[1] != low[1] * size[0]:
        raise ConfigError(
            f"low_res_size {low[0]}×{low[1]} has another aspect ratio than image_size {size[0]}×{size[1]}: "
            "enlarge height and width by the same factor"
        )
    if config.diffusion.align_corners and min(low) < 2:
        raise ConfigError(
            f"diffusion.align_corners needs at least 2×2 pixels, and low_res_size is {format_size(low)}: "
            "set it to False"
        )


def _check_low_res_vae(config: StageConfig) -> None:
    """Checks that a stage which refines the images of a VAE is a diffusion stage of full images of their size."""
    if not config.refines or config.is_codec:
        return
    path, size, low = config.diffusion.low_res_vae, format_size(config.image_hw), format_size(config.low_res_hw)
    problems = []
    if config.low_res_hw != config.image_hw:
        problems.append(
            f"diffusion.low_res_vae {path!r} has images of image_size {size} refined, and low_res_size is {low}: set "
            f"it to {size}, or leave the path ''"
        )
    for name, used, fix in (
        ("model.network 'hvae'", config.is_vae, "take a diffusion network"),
        ("data.crop_size", any(config.data.crop_hw), "set it to 0"),
        ("data.buckets", bool(config.data.bucket_hws), "set it to ()"),
        ("adapter.token", bool(config.adapter.token), "set it to ''"),
    ):
        if used:
            problems.append(f"{name} does not go with diffusion.low_res_vae {path!r}: {fix}, or leave the path ''")
    if problems:
        raise ConfigError(*problems)


def _check_transform(config: StageConfig) -> None:
    transform = getattr(config.data, "transform", None)
    if transform is None:
        return
    if config.channels not in FILE_CHANNELS:
        raise ConfigError(f"channels {config.channels} is not possible with image files: choose 1, 3 or 4")
    if transform.max_pixels < config.image_hw[0] * config.image_hw[1]:
        raise ConfigError(
            f"data.transform.max_pixels {transform.max_pixels} is less than the pixels of image_size "
            f"{format_size(config.image_hw)}: raise it"
        )


def _check_buckets(config: StageConfig) -> None:
    if not config.data.bucket_hws:
        return
    for name, used in (("model.positions", config.model.positions), ("data.crop_size", any(config.data.crop_hw))):
        if used:
            raise ConfigError(f"{name} needs one size of images, and data.buckets has others: set it to 0")
    for bucket in config.data.bucket_hws:
        _check_multiple("data.buckets", bucket, config)
        _check_whole_pixels("data.buckets", bucket, config)


def _check_crops(config: StageConfig) -> None:
    crop, size = config.data.crop_hw, config.image_hw
    if not all(0 < part <= full for part, full in zip(crop, size, strict=True)):
        raise ConfigError(
            f"data.crop_size {format_size(crop)} is not in [1, {format_size(size)}], the image_size; "
            "0 trains on full images"
        )
    if config.model.positions:
        raise ConfigError(
            f"model.positions {config.model.positions} needs full images, and data.crop_size {format_size(crop)} "
            "trains on crops: set one of them to 0"
        )
    if config.diffusion.align_corners:
        raise ConfigError(
            "diffusion.align_corners enlarges a crop in another way than the full image, and data.crop_size "
            f"{format_size(crop)} trains on crops: set one of them to False or 0"
        )
    _check_multiple("data.crop_size", crop, config)
    _check_whole_pixels("data.crop_size", crop, config)


def _check_whole_pixels(name: str, part: Size, config: StageConfig) -> None:
    size, low = config.image_hw, config.low_res_hw
    # the same for both sides: they are enlarged by the same factor
    step = size[0] // math.gcd(size[0], low[0])
    if any(low) and any(side % step for side in part):
        raise ConfigError(
            f"{name} {format_size(part)} is not a multiple of {step}: from image_size {format_size(size)} to "
            f"low_res_size {format_size(low)} it would not become whole pixels"
        )


def _check_optimizer(optimizer: OptimizerConfig) -> None:
    problems = []
    if 0 < optimizer.decay_steps <= optimizer.warmup_steps:
        problems.append(
            f"optimizer.warmup_steps {optimizer.warmup_steps} must be less than optimizer.decay_steps "
            f"{optimizer.decay_steps}"
        )
    if optimizer.end_learning_rate > optimizer.learning_rate:
        problems.append(
            f"optimizer.end_learning_rate {optimizer.end_learning_rate} is above optimizer.learning_rate "
            f"{optimizer.learning_rate}, from which it decays: lower it"
        )
    if optimizer.name == "adafactor" and optimizer.first_moment_dtype != "float32":
        problems.append(
            f"optimizer.first_moment_dtype {optimizer.first_moment_dtype!r} has no effect on optimizer.name "
            "'adafactor', which has no first moment: leave it 'float32', or choose adam or muon"
        )
    problems += _wrong_patterns("optimizer.rate_factors", [pattern for pattern, _ in optimizer.rate_factors])
    if problems:
        raise ConfigError(*problems)


def _check_training(training: TrainingConfig) -> None:
    problems = _wrong_patterns("training.trainable", training.trainable)
    if training.init_weights == "both" and (training.trainable or training.init_partial):
        problems.append(
            "training.init_weights 'both' continues the EMA of all parameters, and training.trainable or "
            "training.init_partial leave some out: take 'ema' or 'raw'"
        )
    if not training.init_from and (training.init_weights != "ema" or training.init_partial):
        problems.append(
            f"training.init_weights {training.init_weights!r} and training.init_partial {training.init_partial} have "
            "no effect without training.init_from: name a stage's folder there, or leave them 'ema' and False"
        )
    if problems:
        raise ConfigError(*problems)


def _wrong_patterns(name: str, patterns: Sequence[str]) -> list[str]:
    problems = []
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            problems.append(f"{name}: {pattern!r} is not a regular expression ({error}): give for example 'attention'")
    return problems


def _check_evaluation(config: StageConfig) -> None:
    """Checks that metrics are computed if they are named, and at steps that are saved if checkpoints depend on them."""
    evaluation, training, problems = config.evaluation, config.training, []
    if bool(evaluation.every) != bool(evaluation.metrics.names):
        problems.append(
            f"evaluation.every {evaluation.every} and evaluation.metrics.names {evaluation.metrics.names} go together: "
            "set both, for example to 10000 and ('fd_lite0',), or 0 and ()"
        )
    if evaluation.best and not (training.keep_best and evaluation.every):
        problems.append(
            f"evaluation.best {evaluation.best!r} has no effect with training.keep_best {training.keep_best} and "
            f"evaluation.every {evaluation.every}: set them, or leave it ''"
        )
    elif evaluation.best and evaluation.every % training.save_every:
        problems.append(
            f"evaluation.every {evaluation.every} is not a multiple of training.save_every {training.save_every}: "
            f"checkpoints could not be compared by evaluation.best {evaluation.best!r}; set it to one"
        )
    if problems:
        raise ConfigError(*problems)


_LORA_KEYS, _TOKEN_KEYS = ("rank", "alpha", "targets"), ("initializer", "vectors")


def _check_adapter(config: StageConfig) -> None:
    """Checks that an adapter is beside a whole network of known weights."""
    adapter, training = config.adapter, config.training
    problems = _wrong_patterns("adapter.targets", adapter.targets)
    for names, used, fix in (
        (_LORA_KEYS, adapter.kind == "lora", "adapter.kind='lora'"),
        (("token",), adapter.enabled, "adapter.kind='textual_inversion' or 'lora'"),
        (_TOKEN_KEYS, adapter.token, "adapter.token, the word to learn"),
    ):
        given = [f"adapter.{name}" for name in names if _is_given(adapter, name)]
        if given and not used:
            problems.append(
                f"{', '.join(given)} has no effect with adapter.kind {adapter.kind!r} and adapter.token "
                f"{adapter.token!r}: set {fix}, or leave it out"
            )
    if adapter.enabled and not training.init_from:
        problems.append(
            f"adapter.kind {adapter.kind!r} needs training.init_from, the stage whose network is adapted: give its "
            "folder"
        )
    if adapter.enabled and (training.trainable or training.init_partial or training.init_weights == "both"):
        problems.append(
            f"training.trainable {training.trainable!r}, training.init_partial {training.init_partial} and "
            f"training.init_weights {training.init_weights!r} do not go with adapter.kind {adapter.kind!r}, which "
            "trains the adapter alone beside all of one kind of init_from's weights: leave them (), False and 'ema', "
            "and choose by adapter.targets"
        )
    if adapter.kind == "textual_inversion" and not adapter.token:
        problems.append("adapter.kind 'textual_inversion' needs adapter.token, the word to learn, such as 'sks star'")
    if config.text.cache and (config.text.learned or adapter.token):
        problems.append(
            "text.cache has embeddings of captions without learned tokens: set it to '', and captions are encoded as "
            "they come"
        )
    if problems:
        raise ConfigError(*problems)


def _is_given(group: Any, name: str) -> bool:
    """Returns whether a key has another value than its default."""
    return bool(getattr(group, name) != type(group).model_fields[name].default)


def _check_masks(inpainting: InpaintingConfig) -> None:
    if inpainting.enabled and not any(getattr(inpainting, kind) for kind in MASK_KINDS):
        keys = ", ".join(f"inpainting.{kind}" for kind in MASK_KINDS)
        raise ConfigError(f"{keys} are all 0, and inpainting.enabled needs masks: set one of them above 0")


def needs_variance(sampling: SamplingConfig) -> bool:
    """Returns whether the sampler uses variances that the network predicts."""
    return sampling.sampler == "ddpm" and sampling.variance_type == "learned"


def _check_sampler(config: StageConfig) -> None:
    sampling, problems = config.sampling, []
    if needs_variance(sampling) and config.diffusion.variance_type != "learned":
        problems.append(
            "sampling.variance_type 'learned' needs a stage trained with diffusion.variance_type 'learned': use small "
            "or large"
        )
    if sampling.oscillating_guidance and sampling.timestep_spacing != "uniform":
        problems.append(
            "sampling.oscillating_guidance counts steps of uniform spacing, and sampling.timestep_spacing is "
            f"{sampling.timestep_spacing!r}: change one of them"
        )
    if not sampling.s_tmin <= sampling.s_tmax:
        problems.append(f"sampling.s_tmin {sampling.s_tmin} is above sampling.s_tmax {sampling.s_tmax}: swap them")
    if problems:
        raise ConfigError(*problems)


def _check_tiles(config: StageConfig) -> None:
    tile = config.sampling.tile_hw
    if not any(tile):
        return
    if config.model.positions:
        raise ConfigError(
            f"sampling.tile_size {format_size(tile)} needs a network without positions, and model.positions is "
            f"{config.model.positions}: set tile_size to 0"
        )
    check_tiles(config.image_hw, tile, config.sampling.tile_overlap, config.side_multiple)
    factor, overlap = config.latent_factor, config.sampling.tile_overlap
    if overlap % factor:
        raise ConfigError(
            f"sampling.tile_overlap {overlap} is not a multiple of {factor}, the pixels of a latent along a side "
            "(codec.model.channel_mult): give one"
        )


def _check_codec(config: StageConfig) -> None:
    """Checks that a codec, which encodes and decodes images alone, has no key set that draws them."""
    if not config.is_codec:
        return
    has = {
        "low_res_size": config.is_super_resolution,
        "diffusion.low_res_vae": config.refines,
        "inpainting.enabled": config.inpainting.enabled,
        "adapter.kind": config.adapter.enabled,
        "codec.kind": config.codec.has_latents,
        "evaluation.every": bool(config.evaluation.every),
        "sampling.tile_size": any(config.sampling.tile_hw),
    }
    problems = [
        f"{name} has no meaning for model.network 'kl_vae', which encodes and decodes images and draws none: leave it "
        "as it is by default"
        for name, given in has.items()
        if given
    ]
    if config.text.cache:
        problems.append("text.cache has no meaning for model.network 'kl_vae', which sees no text: set it to ''")
    if problems:
        raise ConfigError(*problems)


def _check_latents(config: StageConfig) -> None:
    """Checks that a stage of latents has no setting that is of pixels alone."""
    codec, problems = config.codec, []
    if codec.path and not codec.has_latents:
        raise ConfigError(
            f"codec.path {codec.path!r} has no effect with codec.kind 'pixels': set codec.kind to 'kl_vae', or leave "
            "the path ''"
        )
    if not codec.has_latents:
        return
    if len(codec.model.num_res_blocks) != len(codec.model.channel_mult):
        problems.append(
            f"codec.model.num_res_blocks has {len(codec.model.num_res_blocks)} entries for the "
            f"{len(codec.model.channel_mult)} levels of codec.model.channel_mult: give one per level"
        )
    if config.is_super_resolution:
        problems.append(
            f"low_res_size {format_size(config.low_res_hw)} makes a super-resolution stage, whose noise augmentation "
            "is of pixels, and codec.kind is 'kl_vae': enlarge pixels, with codec.kind='pixels'"
        )
    if config.sampling.threshold != "none":
        problems.append(
            f"sampling.threshold {config.sampling.threshold!r} clips pixels to [-1, 1], and latents "
            "(codec.kind 'kl_vae') have no such range: set it to 'none'"
        )
    if config.diffusion.variance_type == "learned":
        problems.append(
            "diffusion.variance_type 'learned' is trained by a bound for pixels of whole levels, and latents "
            "(codec.kind 'kl_vae') have none: set it to 'fixed'"
        )
    if config.model.network not in ("unet", "efficient_unet"):
        problems.append(
            f"model.network {config.model.network!r} is for pixels alone: take 'unet' or 'efficient_unet' with "
            "codec.kind 'kl_vae'"
        )
    if problems:
        raise ConfigError(*problems)


def _check_aug_level(config: StageConfig) -> None:
    if config.is_super_resolution:
        aug_level_distribution(config).check_sampling(config.sampling.aug_level)


def aug_level_distribution(config: StageConfig) -> AugLevelDistribution:
    """Returns the distribution of augmentation levels in training."""
    return AugLevelDistribution(
        distribution=config.diffusion.aug_level_distribution,  # type: ignore[arg-type]  # one of its choices
        interval=config.diffusion.aug_level_range,
        mean=config.diffusion.aug_level_mean,
        std=config.diffusion.aug_level_std,
    )


def mask_distribution(inpainting: InpaintingConfig) -> MaskDistribution:
    """Returns the distribution of masks in training."""
    return MaskDistribution(**{kind: getattr(inpainting, kind) for kind in MASK_KINDS})
