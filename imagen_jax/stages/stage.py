"""A stage of the cascade: what its config means, and what training and sampling share.

A stage is a denoising network at one image size, with its text encoder and noise schedule; a super-resolution stage is
also conditioned on the image of the stage before it.
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

from imagen_jax.config.fields import DTYPES
from imagen_jax.config.fit import aug_level_distribution
from imagen_jax.config.schema import SamplingConfig, StageConfig, TextConfig
from imagen_jax.diffusion import schedules
from imagen_jax.diffusion.noise_augmentation import AugLevelDistribution
from imagen_jax.diffusion.process import PredictionType, add_noise
from imagen_jax.diffusion.schedules import Schedule, cosine_time
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size, format_size, scale_size
from imagen_jax.images.resize import resize
from imagen_jax.models.efficient_unet import EfficientUNet
from imagen_jax.models.unet import UNet
from imagen_jax.models.unet_base import UNetBase, no_constraint
from imagen_jax.parallel.axes import IMAGE, VECTOR
from imagen_jax.parallel.batching import constrain_batch
from imagen_jax.text.embedding_cache import EmbeddingCache, cached_encoder
from imagen_jax.text.encoder import TEXT_CONDITION_AXES, TextEncoder, load_encoder

NETWORKS: dict[str, type[UNetBase]] = {"unet": UNet, "efficient_unet": EfficientUNet}
# of `Stage.augment_low_res`
CONDITION_AXES = {"low_res": IMAGE, "aug_level": VECTOR}


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a config describes, built.

    Attributes:
        config: the stage's config.
        network: the U-Net; its parameters live outside.
        encoder: the frozen text encoder.
        schedule: the noise schedule of training and, unless told otherwise, of sampling.
        aug_schedule: the noise schedule of the low-resolution condition.
        aug_levels: the distribution of its augmentation levels in training.
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
        """What the network predicts."""
        return self.config.diffusion.prediction_type  # type: ignore[return-value]  # one of its choices

    @property
    def learns_variance(self) -> bool:
        """Whether the network also predicts the variance of reverse steps."""
        return self.config.diffusion.variance_type == "learned"

    def with_mesh(self, mesh: Mesh | AbstractMesh) -> Stage:
        """Returns the stage with a network that shards its activations by example and rows, as the mesh says."""
        return dataclasses.replace(self, network=self.network.clone(constrain=partial(constrain_batch, mesh=mesh)))

    def with_sampling(self, changes: Mapping[str, Any]) -> Stage:
        """Returns the stage with other sampling settings. Raises ConfigError for unknown or wrong ones."""
        config = self.config.with_changes({f"sampling.{key}": value for key, value in changes.items()})
        return dataclasses.replace(self, config=config)

    def sampling_key(self) -> SamplingConfig:
        """Returns a hashable key of the stage's sampling settings."""
        return self.config.sampling

    def init(self, key: jax.Array) -> Any:
        """Returns random parameters, a plain nested dict; call it under `jax.jit` with `out_shardings`."""
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
        """Predicts at z_t.

        Args:
            params: of the network.
            z: noisy images z_t [B, H, W, C].
            logsnr: their log signal-to-noise ratio [B].
            text: embeddings [B, L, D].
            text_mask: bool [B, L], True where there is a token.
            condition: from `augment_low_res`; empty for a base stage.
            dropout_keys: one for each example [B]; None for no dropout.

        Returns:
            (prediction, v), both [B, H, W, C]; v interpolates the log-variance of a reverse step, and is None where
            variances are not learned.
        """
        z, logsnr, text, text_mask, condition = self.network.constrain(
            (z, logsnr, text, text_mask, condition), (IMAGE, VECTOR, *TEXT_CONDITION_AXES, CONDITION_AXES)
        )
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
        """Returns the text of a dropped caption, in training and in guidance: embeddings [L, D] and mask [L].

        With `diffusion.null_text` "zero", zeros and an empty mask (arXiv:2205.11487, Section 2.2); with "empty", the
        encoding of the empty caption, whose only token is the end of the sequence.
        """
        if self.config.diffusion.null_text == "zero":
            return jnp.zeros((self.encoder.length, self.encoder.width)), jnp.zeros(self.encoder.length, bool)
        tokens, mask = map(jnp.asarray, self.encoder.tokenize.empty_caption)
        return self.encoder.encode(encoder_params, tokens[None], mask[None])[0], mask

    def augment_low_res(self, low_res: jax.Array, aug_level: jax.Array, eps: jax.Array) -> dict[str, jax.Array]:
        """Applies noise conditioning augmentation (arXiv:2205.11487, Section 2.3).

        Args:
            low_res: images, or crops of them, [B, h, w, C].
            aug_level: noise levels [B] in [0, 1].
            eps: Gaussian noise [B, h, w, C].

        Returns:
            `low_res`, with noise and resized to the stage's image size (for a crop, to the crop's), and `aug_level`
            [B], as the network gets them.
        """
        size = scale_size(low_res.shape[1:3], self.low_res_shape[:2], self.image_shape[:2])
        alpha, sigma = self.aug_schedule.alpha(aug_level), self.aug_schedule.sigma(aug_level)
        noisy = add_noise(low_res, eps, alpha, sigma)
        return {
            "low_res": resize(noisy, *size, self.config.diffusion.align_corners),
            "aug_level": cosine_time(self.aug_schedule.logsnr(aug_level)),
        }


def build(config: StageConfig, encoder: TextEncoder | None = None) -> Stage:
    """The stage that a config describes, with another text encoder than `make_encoder` makes if one is given."""
    return Stage(
        config=config,
        network=make_network(config),
        encoder=encoder or make_encoder(config.text),
        schedule=schedules.get_schedule(config.diffusion.schedule, config.diffusion.schedule_shift),
        aug_schedule=schedules.get_schedule(config.diffusion.aug_schedule, config.diffusion.aug_schedule_shift),
        aug_levels=aug_level_distribution(config),
    )


def make_encoder(config: TextConfig) -> TextEncoder:
    """Returns the text encoder that a config names, its weights not yet read. Raises ConfigError if there is none."""
    try:
        return load_encoder(config.model, config.length, DTYPES[config.dtype])
    except ValueError as error:
        raise ConfigError(f"text: {error}") from error


def make_cached_encoder(config: TextConfig) -> TextEncoder:
    """Returns an encoder that looks embeddings up in a config's `text.cache`.

    With `text.fingerprint` the encoder's files are not needed; without it all of its weights are read once, to compute
    the fingerprint.

    Raises:
        ConfigError: the cache is of another encoder or length.
    """
    cache = EmbeddingCache(Path(config.cache))
    expected_values = {"length": config.length, "fingerprint": config.fingerprint}
    if not config.fingerprint:
        try:
            encoder = make_encoder(config)
        except ConfigError as error:
            raise ConfigError(
                f"{error}; or, to train from {config.cache!r} alone, set text.fingerprint: `imagen embed` printed it"
            ) from error
        expected_values |= {"width": encoder.width, "fingerprint": encoder.fingerprint()}
    for name, expected in expected_values.items():
        cached = getattr(cache.plan, name)
        if cached != expected:
            raise ConfigError(
                f"text.cache {config.cache!r} has {name} {cached}, and the config's text encoder has {expected}: "
                "give a cache that was written with this config, or none"
            )
    return cached_encoder(cache, DTYPES[config.dtype])


def check_fingerprint(encoder: TextEncoder, config: TextConfig) -> None:
    """Raises ConfigError if a config's `text.fingerprint` is that of another encoder; reads all weights to check."""
    if config.fingerprint and config.fingerprint != encoder.fingerprint():
        raise ConfigError(
            f"text encoder {config.model!r} has fingerprint {encoder.fingerprint()}, and text.fingerprint is "
            f"{config.fingerprint}: set text.model to the encoder of that fingerprint, or correct it"
        )


def load_encoder_params(stage: Stage, mesh: Mesh) -> Any:
    """Returns the text encoder's parameters on a mesh. Raises ConfigError as `check_fingerprint`."""
    check_fingerprint(stage.encoder, stage.config.text)
    return stage.encoder.load(mesh)


def make_network(config: StageConfig) -> UNetBase:
    """Returns the network that a config describes; no text encoder is needed."""
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
    """Returns the arguments of a config's network for one image of a size, as abstract arrays, in order.

    Args:
        config: the stage.
        text_width: D of the text embeddings, so that the text encoder is not needed.
        size: (height, width) of the image.
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
                f"{name} {format_size(size)} cannot be split over {spatial} devices (spatial): its {size[0]} rows must "
                f"be a multiple of {needed}, so that each device has full rows at every level: give fewer devices"
            )
