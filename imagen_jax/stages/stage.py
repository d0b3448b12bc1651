"""A stage of the cascade: what its config means, and what training and sampling share.

A stage is a network that sees through noise at one image size, with its text encoder and noise schedule; a
super-resolution stage also sees the stage before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from imagen_jax.config.schema import DTYPES, SamplingConfig, StageConfig, TextConfig
from imagen_jax.diffusion import schedules
from imagen_jax.diffusion.noise_augmentation import AugLevelDistribution
from imagen_jax.diffusion.process import PredictionType, add_noise
from imagen_jax.diffusion.schedules import Schedule, cosine_time
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size, said, scaled
from imagen_jax.images.resize import resize
from imagen_jax.models.efficient_unet import EfficientUNet
from imagen_jax.models.unet import UNet
from imagen_jax.models.unet_base import UNetBase, no_constraint
from imagen_jax.parallel.sharding import lay_examples
from imagen_jax.text.embedding_cache import EmbeddingCache, cached_encoder
from imagen_jax.text.encoder import TextEncoder, load_encoder

NETWORKS: dict[str, type[UNetBase]] = {"unet": UNet, "efficient_unet": EfficientUNet}


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a config describes, built.

    Attributes:
        config: the stage's config.
        network: the U-Net; its parameters live outside.
        encoder: the frozen text encoder.
        schedule: the noise schedule of training and, unless told otherwise, of sampling.
        aug_schedule: that of the noise in the low-resolution condition.
        aug_levels: how much of it there is in training.
    """

    config: StageConfig
    network: UNetBase
    encoder: TextEncoder
    schedule: Schedule
    aug_schedule: Schedule
    aug_levels: AugLevelDistribution

    @property
    def is_super_resolution(self) -> bool:
        """Whether the stage needs a low-resolution image."""
        return self.config.is_super_resolution

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of its images."""
        return *self.config.image_hw, self.config.channels

    @property
    def low_res_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images it starts from."""
        return *self.config.low_res_hw, self.config.channels

    @property
    def prediction(self) -> PredictionType:
        """What its network predicts."""
        return self.config.diffusion.prediction_type  # type: ignore[return-value]  # one of its choices

    @property
    def learns_variance(self) -> bool:
        """Whether its network says the variance of reverse steps too."""
        return self.config.diffusion.variance_type == "learned"

    def laid_on(self, mesh: Mesh | AbstractMesh) -> Stage:
        """The stage with a network that keeps features where the mesh has their examples, within loops too."""
        return dataclasses.replace(self, network=self.network.clone(constrain=partial(lay_examples, mesh=mesh)))

    def with_sampling(self, changes: Mapping[str, Any]) -> Stage:
        """Returns the stage with other sampling settings. Raises ConfigError for unknown or wrong ones."""
        config = self.config.with_changes({f"sampling.{key}": value for key, value in changes.items()})
        return dataclasses.replace(self, config=config)

    def sampling_key(self) -> SamplingConfig:
        """Returns a hashable key of the stage's sampling settings."""
        return self.config.sampling

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters, a plain nested dict; call it under ``jax.jit`` with ``out_shardings``."""
        arguments = network_arguments(self.config, self.encoder.width, self.config.image_hw)
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
        z, logsnr, text, text_mask, condition = self.network.constrain((z, logsnr, text, text_mask, condition))
        output = self.network.apply(
            {"params": params},
            z,
            cosine_time(logsnr),
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

        With ``diffusion.null_text`` "zero" no text at all (arXiv:2205.11487, Section 2.2); with "empty" what the
        encoder makes of a caption of no words, whose only token is the end of the sequence, as for T5's "".
        """
        if self.config.diffusion.null_text == "zero":
            return jnp.zeros((self.encoder.length, self.encoder.width)), jnp.zeros(self.encoder.length, bool)
        tokens, mask = map(jnp.asarray, self.encoder.tokenize.empty_caption)
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
            "aug_level": cosine_time(self.aug_schedule.logsnr(aug_level)),
        }


def build(config: StageConfig, encoder: TextEncoder | None = None) -> Stage:
    """The stage that a config describes, with another text encoder than ``make_encoder`` makes if one is given."""
    return Stage(
        config=config,
        network=make_network(config),
        encoder=encoder or make_encoder(config.text),
        schedule=schedules.get_schedule(config.diffusion.schedule, config.diffusion.schedule_shift),
        aug_schedule=schedules.get_schedule(config.diffusion.aug_schedule, config.diffusion.aug_schedule_shift),
        aug_levels=AugLevelDistribution(
            distribution=config.diffusion.aug_level_distribution,  # type: ignore[arg-type]  # one of its choices
            interval=config.diffusion.aug_level_range,
            mean=config.diffusion.aug_level_mean,
            std=config.diffusion.aug_level_std,
        ),
    )


def make_encoder(config: TextConfig) -> TextEncoder:
    """The text encoder that a config's ``text`` names, its weights not yet read. Raises UsageError if there is none."""
    try:
        return load_encoder(config.model, config.length, DTYPES[config.dtype])
    except ValueError as error:
        raise ConfigError(f"config.text: {error}") from error


def make_cached_encoder(config: TextConfig) -> TextEncoder:
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


def check_fingerprint(encoder: TextEncoder, config: TextConfig) -> None:
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


def make_network(config: StageConfig) -> UNetBase:
    """The network that a config describes; no text encoder is needed."""
    fields = config.model.to_dict()
    network = NETWORKS[fields.pop("network")]
    fields["dtype"] = DTYPES[fields["dtype"]]
    outputs = 2 if config.diffusion.variance_type == "learned" else 1
    return network(
        image_channels=config.channels,
        out_channels=outputs * config.channels,
        remat=config.training.remat,
        constrain=no_constraint,
        **fields,
    )


def network_arguments(config: StageConfig, text_width: int, size: Size) -> list[jax.ShapeDtypeStruct]:
    """What a config's network is called with for one image of a size, as abstract arrays, in order.

    ``text_width`` is D of the text embeddings, so that a network can be looked at without its text encoder.
    """
    image = jax.ShapeDtypeStruct((1, *size, config.channels), jnp.float32)
    level = jax.ShapeDtypeStruct((1,), jnp.float32)
    text = jax.ShapeDtypeStruct((1, config.text.length, text_width), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, config.text.length), jnp.bool_)
    condition = [image, level] if config.is_super_resolution else []
    return [image, level, text, mask, *condition]


def check_rows(config: StageConfig, spatial: int) -> None:
    """Checks that `spatial` devices can share the rows of a config's images, at all levels alike.

    Raises:
        ConfigError: a height is not divisible.
    """
    multiple = spatial * config.model.side_multiple
    sizes = [("image_size", config.image_hw), ("data.crop_size", config.data.crop_hw)]
    sizes += [("low_res_size", config.low_res_hw), ("sampling.tile_size", config.sampling.tile_hw)]
    sizes += [("data.buckets", bucket) for bucket in config.data.bucket_hws]
    for name, size in sizes:
        # the network sees low-resolution images enlarged
        needed = spatial if name == "low_res_size" else multiple
        if spatial > 1 and size[0] % needed:
            raise ConfigError(
                f"{name} {said(size)} cannot be split over {spatial} devices (spatial): its {size[0]} rows must be a "
                f"multiple of {needed}, so that each device has whole rows at every level: give fewer devices"
            )
