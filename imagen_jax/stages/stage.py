"""A stage of the cascade: what its config means, and what training and sampling share.

A stage is a network that sees through noise at one image size, with its text encoder and noise schedule; a
super-resolution stage also sees the stage before it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import AbstractMesh, Mesh

from imagen_jax.config.rules import DTYPES, NETWORKS, check_values
from imagen_jax.data.buckets import bucket_sizes
from imagen_jax.diffusion import schedules
from imagen_jax.diffusion.noise_augmentation import AugLevels
from imagen_jax.diffusion.process import Prediction, add_noise
from imagen_jax.diffusion.schedules import Schedule, noise_angle
from imagen_jax.errors import ConfigError, collect_errors
from imagen_jax.images.array import Size, said, scaled, size_of
from imagen_jax.images.resize import resize
from imagen_jax.models.unet_base import Denoiser, as_they_lie
from imagen_jax.parallel.sharding import check_rules, lay_examples
from imagen_jax.text.embedding_cache import EmbeddingCache, cached_encoder
from imagen_jax.text.encoder import TextEncoder, load_encoder


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a config describes, built.

    Attributes:
        config: as in ``configs/``.
        network: the U-Net; its parameters live outside.
        encoder: the frozen text encoder.
        schedule: the noise schedule of training and, unless told otherwise, of sampling.
        aug_schedule: that of the noise in the low-resolution condition.
        aug_levels: how much of it there is in training.
    """

    config: ml_collections.ConfigDict
    network: Denoiser
    encoder: TextEncoder
    schedule: Schedule
    aug_schedule: Schedule
    aug_levels: AugLevels

    @property
    def is_super_resolution(self) -> bool:
        """Whether the stage needs a low-resolution image."""
        return is_super_resolution(self.config)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of its images."""
        return *image_size(self.config), self.config.channels

    @property
    def low_res_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images it starts from."""
        return *low_res_size(self.config), self.config.channels

    @property
    def prediction(self) -> Prediction:
        """What its network predicts."""
        return self.config.diffusion.prediction

    @property
    def learns_variance(self) -> bool:
        """Whether its network says the variance of reverse steps too."""
        return self.config.diffusion.variance == "learned"

    def laid_on(self, mesh: Mesh | AbstractMesh) -> Stage:
        """The stage with a network that keeps features where the mesh has their examples, within loops too."""
        return dataclasses.replace(self, network=self.network.clone(lay=partial(lay_examples, mesh=mesh)))

    def with_sampling(self, changes: Mapping[str, Any]) -> Stage:
        """Returns the stage with other sampling settings. Raises ConfigError for unknown or wrong ones."""
        config = self.config.copy_and_resolve_references()
        with config.ignore_type():
            config.sampling.update(changes)
        return dataclasses.replace(self, config=config)

    def sampling_key(self) -> str:
        """Returns a hashable key of the stage's sampling settings."""
        return self.config.sampling.to_json()

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters, a plain nested dict; call it under ``jax.jit`` with ``out_shardings``."""
        arguments = network_arguments(self.config, self.encoder.width, image_size(self.config))
        zeros = [jnp.zeros(argument.shape, argument.dtype) for argument in arguments]
        return self.network.init({"params": key}, *zeros)["params"]

    def predict(
        self,
        params: Any,
        z: jax.Array,
        logsnr: jax.Array,
        text: jax.Array,
        text_mask: jax.Array,
        condition: dict[str, jax.Array],
        dropout_keys: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """(prediction, v) at z_t, both [B, H, W, C]; v as in ``diffusion``, None where variances are not learned.

        ``condition`` is from ``condition_on``, or empty; ``dropout_keys`` [B] are of each example's dropout, if any.
        """
        z, logsnr, text, text_mask, condition = self.network.lay((z, logsnr, text, text_mask, condition))
        output = self.network.apply(
            {"params": params},
            z,
            noise_angle(logsnr),
            text,
            text_mask,
            condition.get("low_res"),
            condition.get("aug_level"),
            dropout_keys,
        )
        assert isinstance(output, jax.Array)  # no mutable collections: nothing else comes back
        channels = self.config.channels
        return output[..., :channels], output[..., channels:] if self.learns_variance else None

    def unconditional(self, encoder_params: Any) -> tuple[jax.Array, jax.Array]:
        """What stands in the place of a dropped caption, in training and in guidance: text [L, D], mask [L].

        With ``diffusion.unconditional`` "zero" no text at all (arXiv:2205.11487, Section 2.2); with "empty" what the
        encoder makes of a caption of no words, whose only token is the end of the sequence, as for T5's "".
        """
        if self.config.diffusion.unconditional == "zero":
            return jnp.zeros((self.encoder.length, self.encoder.width)), jnp.zeros(self.encoder.length, bool)
        tokens, mask = map(jnp.asarray, self.encoder.tokenize.no_words)
        return self.encoder.encode(encoder_params, tokens[None], mask[None])[0], mask

    def condition_on(self, low_res: jax.Array, aug_level: jax.Array, eps: jax.Array) -> dict[str, jax.Array]:
        """Noise conditioning augmentation (arXiv:2205.11487, Section 2.3): low_res [B, h, w, C] as the network gets it.

        ``low_res`` gets the noise of ``aug_level`` [B] in [0, 1], made of ``eps`` of its shape, and the stage's size;
        if it is of a crop, the crop's.
        """
        size = scaled(low_res.shape[1:3], self.low_res_shape[:2], self.image_shape[:2])
        alpha, sigma = self.aug_schedule.alpha(aug_level), self.aug_schedule.sigma(aug_level)
        noisy = add_noise(low_res, eps, alpha, sigma)
        return {
            "low_res": resize(noisy, *size, self.config.diffusion.align_corners),
            "aug_level": noise_angle(self.aug_schedule.logsnr(aug_level)),
        }


def build(config: ml_collections.ConfigDict, encoder: TextEncoder | None = None) -> Stage:
    """The stage that a config describes, with another text encoder than ``make_encoder`` makes if one is given.

    Raises UsageError where the config cannot work.
    """
    return Stage(
        config=config,
        network=make_network(config),
        encoder=encoder or make_encoder(config.text),
        schedule=schedules.by_name(config.diffusion.schedule, config.diffusion.schedule_shift),
        aug_schedule=schedules.by_name(config.diffusion.aug_schedule, config.diffusion.aug_schedule_shift),
        aug_levels=aug_levels(config),
    )


def make_encoder(config: ml_collections.ConfigDict) -> TextEncoder:
    """The text encoder that a config's ``text`` names, its weights not yet read. Raises UsageError if there is none."""
    try:
        return load_encoder(config.model, config.length, DTYPES[config.dtype])
    except ValueError as error:
        raise ConfigError(f"config.text: {error}") from error


def make_cached_encoder(config: ml_collections.ConfigDict) -> TextEncoder:
    """What a config's ``text.cache`` has of the text encoder, which is then not needed itself.

    Raises UsageError for a cache of another encoder or length. With ``text.fingerprint`` the encoder's files need not
    be there; without it all of its weights are read, once, to tell which it is.
    """
    cache = EmbeddingCache(Path(config.cache))
    of_config = {"length": config.length, "fingerprint": config.fingerprint}
    if not config.fingerprint:
        try:
            encoder = make_encoder(config)
        except ConfigError as error:
            raise ConfigError(
                f"{error}; or, to train from {config.cache!r} alone, set text.fingerprint: the embed command said it"
            ) from error
        of_config |= {"width": encoder.width, "fingerprint": encoder.fingerprint()}
    for name, expected in of_config.items():
        found = getattr(cache.plan, name)
        if found != expected:
            raise ConfigError(
                f"config.text.cache {config.cache!r} has {name} {found}, and config.text means {name} {expected}: "
                "give a cache that was embedded with this config, or none"
            )
    return cached_encoder(cache, DTYPES[config.dtype])


def check_fingerprint(encoder: TextEncoder, config: ml_collections.ConfigDict) -> None:
    """Raises UsageError if a config's ``text.fingerprint`` is that of another encoder; reads all weights to see."""
    if config.fingerprint and config.fingerprint != encoder.fingerprint():
        raise ConfigError(
            f"text encoder {config.model!r} has fingerprint {encoder.fingerprint()}, and config.text.fingerprint is "
            f"{config.fingerprint}: name the encoder that is meant as text.model, or correct it"
        )


def load_encoder_params(stage: Stage, mesh: Mesh) -> Any:
    """The text encoder's parameters, on the mesh. Raises UsageError as ``check_fingerprint``."""
    check_fingerprint(stage.encoder, stage.config.text)
    return stage.encoder.load(mesh)


def make_network(config: ml_collections.ConfigDict) -> Denoiser:
    """The network that a config describes; no text encoder is needed. Raises UsageError as ``build``."""
    check(config)
    model = config.model.to_dict()
    network = NETWORKS[model.pop("network")]
    fields = {name: freeze(value) for name, value in model.items()}
    fields["dtype"] = DTYPES[fields["dtype"]]
    outputs = 2 if config.diffusion.variance == "learned" else 1
    return network(
        image_channels=config.channels,
        out_channels=outputs * config.channels,
        remat=config.training.remat,
        lay=as_they_lie,
        **fields,
    )


def aug_levels(config: ml_collections.ConfigDict) -> AugLevels:
    """The distribution of augmentation levels that a config describes. Raises UsageError if it means none."""
    settings = config.diffusion
    return AugLevels(
        distribution=settings.aug_level_distribution,
        interval=tuple(settings.aug_level_range),
        mean=settings.aug_level_mean,
        std=settings.aug_level_std,
    )


def image_size(config: ml_collections.ConfigDict) -> Size:
    """(height, width) of a config's images. Raises UsageError if it says none."""
    return size_of(config.image_size, "config.image_size")


def low_res_size(config: ml_collections.ConfigDict) -> Size:
    """(height, width) of the images that a config's stage starts from, 0 of a base. Raises UsageError if it is none."""
    return size_of(config.low_res_size, "config.low_res_size")


def crop_size(config: ml_collections.ConfigDict) -> Size:
    """(height, width) of the crops that a config trains on, 0 for whole images. Raises UsageError if it is none."""
    return size_of(config.data.crop_size, "config.data.crop_size")


def training_size(config: ml_collections.ConfigDict) -> Size:
    """(height, width) of what the network sees in training: of a crop if the config asks for them, else of images."""
    return crop_size(config) if any(crop_size(config)) else image_size(config)


def is_super_resolution(config: ml_collections.ConfigDict) -> bool:
    """Whether a config's stage needs a low-resolution image."""
    return any(low_res_size(config))


def network_arguments(config: ml_collections.ConfigDict, text_width: int, size: Size) -> list[jax.ShapeDtypeStruct]:
    """What a config's network is called with for one image of a size, as abstract arrays, in order.

    ``text_width`` is D of the text embeddings, so that a network can be looked at without its text encoder.
    """
    image = jax.ShapeDtypeStruct((1, *size, config.channels), jnp.float32)
    level = jax.ShapeDtypeStruct((1,), jnp.float32)
    text = jax.ShapeDtypeStruct((1, config.text.length, text_width), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, config.text.length), jnp.bool_)
    condition = [image, level] if is_super_resolution(config) else []
    return [image, level, text, mask, *condition]


def freeze(value: Any) -> Any:
    """Lists, as JSON gives them, as the tuples that a module's fields must be."""
    return tuple(freeze(item) for item in value) if isinstance(value, (list, tuple)) else value


def check(config: ml_collections.ConfigDict) -> None:
    """Raises UsageError for all that is wrong and can be seen before anything is built: values, then how they fit."""
    check_values(config.to_dict())
    model = config.model
    collect_errors(
        lambda: aug_levels(config),
        lambda: check_rules(config.sharding_rules),
        lambda: check_levels(model),
        lambda: check_multiple("config.image_size", image_size(config), model),
        lambda: check_heads(model),
        lambda: check_text_heads(model),
        lambda: check_enlargement(config) if is_super_resolution(config) else None,
        lambda: check_crops(config) if any(crop_size(config)) else None,
        lambda: check_buckets(config) if bucket_sizes(config.data) else None,
    )


def check_levels(model: ml_collections.ConfigDict) -> None:
    """Raises UsageError unless a config's ``model`` says of each of its levels what it consists of."""
    levels = len(model.multipliers)
    collect_errors(*(partial(check_level_entries, model, name, levels) for name in ("blocks", "attention")))


def check_level_entries(model: ml_collections.ConfigDict, name: str, levels: int) -> None:
    """Raises UsageError unless a key of ``model`` has an entry for each level."""
    if len(model[name]) != levels:
        raise ConfigError(
            f"config.model.{name} has {len(model[name])} entries for the {levels} levels of model.multipliers: "
            "give one a level"
        )


def check_heads(model: ml_collections.ConfigDict) -> None:
    """Raises UsageError unless heads of attention divide the channels that they are made of."""
    # what has the wrong number of entries is told of by check_levels
    attending = {channels for channels, kinds in zip(model.multipliers, model.attention, strict=False) if kinds}
    if model.network == "unet" and model.middle_attention:
        attending.add(model.multipliers[-1])
    for channels in sorted(multiplier * model.channels for multiplier in attending):
        if channels % model.head_channels:
            raise ConfigError(
                f"config.model.head_channels {model.head_channels} does not divide the {channels} channels of a level"
            )


def check_text_heads(model: ml_collections.ConfigDict) -> None:
    """Raises UsageError unless the heads that pool the text divide the vector that they make."""
    width = model.channels * model.embedding_multiplier
    if width % model.text_heads:
        raise ConfigError(
            f"config.model.text_heads {model.text_heads} does not divide {width}, the width of the conditioning "
            "(model.channels × model.embedding_multiplier)"
        )


def check_multiple(name: str, size: Size, model: ml_collections.ConfigDict) -> None:
    """Raises UsageError unless both sides of a size are what the network of a config's ``model`` takes."""
    multiple = side_multiple(model)
    if any(side < 1 or side % multiple for side in size):
        raise ConfigError(
            f"{name} {said(size)} is not a multiple of {multiple}, which patches of {model.patch} (model.patch) and "
            f"{len(model.multipliers)} levels (model.multipliers) need"
        )


def side_multiple(model: ml_collections.ConfigDict) -> int:
    """What the sides of images must be multiples of for the network of a config's ``model``."""
    return model.patch * 2 ** (len(model.multipliers) - (model.network == "unet"))


def check_rows(config: ml_collections.ConfigDict, spatial: int) -> None:
    """Raises UsageError unless ``spatial`` devices can share the rows of a config's images, at all levels alike."""
    multiple = spatial * side_multiple(config.model)
    heights = {"config.image_size": image_size(config), "config.data.crop_size": crop_size(config)}
    heights["config.low_res_size"] = low_res_size(config)
    heights["config.sampling.tile_size"] = size_of(config.sampling.tile_size, "config.sampling.tile_size")
    sizes = [*heights.items(), *(("config.data.buckets", bucket) for bucket in bucket_sizes(config.data))]
    for name, size in sizes:
        # of a low-resolution image the network sees an enlarged one
        needed = spatial if name == "config.low_res_size" else multiple
        if spatial > 1 and size[0] % needed:
            raise ConfigError(
                f"{name} {said(size)} cannot be split over {spatial} devices (spatial): its {size[0]} rows must be a "
                f"multiple of {needed}, so that each has whole rows at every level: give fewer devices"
            )


def check_enlargement(config: ml_collections.ConfigDict) -> None:
    """Raises UsageError unless a config's low-resolution images are smaller ones of the same shape."""
    size, low = image_size(config), low_res_size(config)
    if not all(0 < small < large for small, large in zip(low, size, strict=True)):
        raise ConfigError(f"config.low_res_size {said(low)} must be below config.image_size {said(size)}")
    if low[0] * size[1] != low[1] * size[0]:
        raise ConfigError(
            f"config.low_res_size {low[0]}×{low[1]} has another shape than config.image_size {size[0]}×{size[1]}: "
            "height and width must be enlarged by as much"
        )
    if config.diffusion.align_corners and min(low) < 2:
        raise ConfigError(
            f"config.diffusion.align_corners needs 2 pixels each way, and config.low_res_size is {said(low)}: "
            "set it to False"
        )


def check_buckets(config: ml_collections.ConfigDict) -> None:
    """Raises UsageError unless a config's network can be trained at the sizes of its buckets."""
    for name, value in (("model.positions", config.model.positions), ("data.crop_size", config.data.crop_size)):
        if value not in (0, (0, 0)):
            raise ConfigError(
                f"config.{name} {value} goes with one size alone, and config.data.buckets has others: set it to 0"
            )
    for bucket in bucket_sizes(config.data):
        check_multiple("config.data.buckets", bucket, config.model)
        check_whole_pixels("config.data.buckets", bucket, config)


def check_crops(config: ml_collections.ConfigDict) -> None:
    """Raises UsageError unless a config's network can be trained on its crops."""
    crop, size = crop_size(config), image_size(config)
    if not all(0 < part <= whole for part, whole in zip(crop, size, strict=True)):
        raise ConfigError(
            f"config.data.crop_size {said(crop)} is not in [1, {said(size)}]: a crop is part of an image of "
            f"config.image_size {said(size)}; 0 trains on whole images"
        )
    if config.model.positions:
        raise ConfigError(
            f"config.model.positions {config.model.positions} ties the network to whole images, and "
            f"config.data.crop_size {said(crop)} trains it on crops: set one of them to 0"
        )
    if config.diffusion.align_corners:
        raise ConfigError(
            "config.diffusion.align_corners enlarges a crop otherwise than the same place of a whole image, and "
            f"config.data.crop_size {said(crop)} trains on crops: set one of them to False or 0"
        )
    check_multiple("config.data.crop_size", crop, config.model)
    check_whole_pixels("config.data.crop_size", crop, config)


def check_whole_pixels(name: str, part: Size, config: ml_collections.ConfigDict) -> None:
    """Raises UsageError unless what a network is trained on has whole pixels at the low resolution, if there is one."""
    size, low = image_size(config), low_res_size(config)
    # the same for both sides: they are enlarged by as much
    step = size[0] // math.gcd(size[0], low[0])
    if any(low) and any(side % step for side in part):
        raise ConfigError(
            f"{name} {said(part)} is not a multiple of {step}: from config.image_size {said(size)} to "
            f"config.low_res_size {said(low)} it would not become whole pixels"
        )
