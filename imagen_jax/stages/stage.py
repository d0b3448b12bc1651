"""A stage of the cascade: what its config means, and what training and sampling share.

A stage is a denoising network at one image size, with its noise schedule, or a VAE, see `vae.py`; a super-resolution
stage is also conditioned on the image of the stage before it. Text is encoded outside of it, see `text.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from imagen_jax.config.fields import DTYPES
from imagen_jax.config.fit import aug_level_distribution, mask_distribution
from imagen_jax.config.schema import AdapterConfig, SamplingConfig, StageConfig
from imagen_jax.diffusion import schedules
from imagen_jax.diffusion.noise_augmentation import AugLevelDistribution
from imagen_jax.diffusion.process import PredictionType, add_noise
from imagen_jax.diffusion.random_masks import MaskDistribution
from imagen_jax.diffusion.schedules import Schedule, cosine_time, discrete_index
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size, format_size, scale_size
from imagen_jax.images.resize import resize
from imagen_jax.models.attention_control import AttentionControl
from imagen_jax.models.efficient_unet import EfficientUNet
from imagen_jax.models.hvae import HVAE
from imagen_jax.models.if_unet import IFUNet
from imagen_jax.models.unet import UNet
from imagen_jax.models.unet_base import UNetBase, no_constraint
from imagen_jax.parallel.axes import IMAGE, VECTOR
from imagen_jax.parallel.batching import constrain_batch
from imagen_jax.stages.adapter import fold_adapter, learned_rows, network_params, split_adapter, with_adapter
from imagen_jax.stages.codec import CODEC, Codec
from imagen_jax.stages.text import make_encoder
from imagen_jax.text.encoder import TEXT_CONDITION_AXES, TextCondition
from imagen_jax.text.learned_tokens import Words
from imagen_jax.variational.logistics import num_parameters

Network = UNetBase | IFUNet | HVAE
NETWORKS: dict[str, type[Network]] = {"unet": UNet, "efficient_unet": EfficientUNet, "if_unet": IFUNet, "hvae": HVAE}
# logsnr → the noise level that networks are conditioned on, where it is not `cosine_time`
_NOISE_LEVELS = {"if_unet": discrete_index}
# of `Stage.augment_low_res`, `Stage.mask_known` and `StageRequest.positions`
CONDITION_AXES = {
    "low_res": IMAGE,
    "aug_level": VECTOR,
    "known": IMAGE,
    "row_positions": "batch ...",
    "column_positions": "batch ...",
}
_KNOWN_POSITION = 7  # among the arguments of a network


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a config describes, built.

    Attributes:
        config: the stage's config.
        network: the U-Net or VAE; its parameters live outside.
        text_width: width D of the text embeddings.
        schedule: the noise schedule of training and, unless told otherwise, of sampling.
        aug_schedule: the noise schedule of the low-resolution condition.
        aug_levels: the distribution of its augmentation levels in training.
        masks: the distribution of its masks in training; None for a stage that is not trained to inpaint.
        codec: between pixels and the latents that the network sees; None for a network that sees pixels.
    """

    config: StageConfig
    network: Network
    text_width: int
    schedule: Schedule
    aug_schedule: Schedule
    aug_levels: AugLevelDistribution
    masks: MaskDistribution | None = None
    codec: Codec | None = None

    @property
    def is_super_resolution(self) -> bool:
        """Whether the stage needs a low-resolution image."""
        return self.config.is_super_resolution

    @property
    def enlarges(self) -> bool:
        """Whether the low-resolution image is smaller than the stage's own: it is not where one is refined."""
        return self.is_super_resolution and not self.config.refines

    @property
    def is_vae(self) -> bool:
        """Whether the stage is a VAE, which `vae.py` has functions for in the place of `predict`."""
        return self.config.is_vae

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of its images."""
        return *self.config.image_hw, self.config.channels

    @property
    def low_res_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images it starts from."""
        return *self.config.low_res_hw, self.config.channels

    def z_shape(self, size: Sequence[int]) -> tuple[int, int, int]:
        """Returns (h, w, c) of what the network sees of images of a (height, width): of pixels, or of latents."""
        height, width = (side // self.config.latent_factor for side in size)
        return height, width, self.config.z_channels

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
        network = self.network.clone(constrain=partial(constrain_batch, mesh=mesh))
        return dataclasses.replace(self, network=network, codec=self.codec and self.codec.with_mesh(mesh))

    def with_sampling(self, changes: Mapping[str, Any]) -> Stage:
        """Returns the stage with other sampling settings. Raises ConfigError for unknown or wrong ones."""
        config = self.config.with_changes({f"sampling.{key}": value for key, value in changes.items()})
        return dataclasses.replace(self, config=config)

    def without_adapter(self, params: Any) -> tuple[Stage, Any, Words]:
        """Returns the stage, its parameters with the adapter in its kernels, and the words that were learned."""
        adapter = self.config.adapter
        if not adapter.enabled:
            return self, params, {}
        words = {adapter.token: learned_rows(params)} if adapter.token else {}
        shardings = jax.tree.map(lambda leaf: leaf.sharding, split_adapter(params)[1])
        folded = jax.jit(partial(fold_adapter, self.config), out_shardings=shardings)(params)
        changes = {f"adapter.{name}": value for name, value in AdapterConfig().to_dict().items()}
        return dataclasses.replace(self, config=self.config.with_changes(changes)), folded, words

    def sampling_key(self) -> SamplingConfig:
        """Returns a hashable key of the stage's sampling settings."""
        return self.config.sampling

    def init(self, key: jax.Array) -> Any:
        """Returns random parameters, a plain nested dict; call it under `jax.jit` with `out_shardings`.

        Raises ConfigError if an adapter's targets are not modules of the network.
        """
        arguments = network_arguments(self.config, self.text_width, self.config.image_hw)
        zeros = jax.tree.map(lambda argument: jnp.zeros(argument.shape, argument.dtype), arguments)
        params = with_adapter(self.config, self.network.init({"params": key}, *zeros)["params"], key)
        return params if self.codec is None else {**params, CODEC: self.codec.init(key)}

    def predict(
        self,
        params: Any,
        z: jax.Array,
        logsnr: jax.Array,
        text: TextCondition,
        condition: dict[str, jax.Array],
        control: AttentionControl | None = None,
        dropout_keys: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Predicts at z_t.

        Args:
            params: of the network, and of an adapter if the config has one.
            z: noisy images z_t [B, H, W, C]; of a stage of latents noisy latents, here and below.
            logsnr: their log signal-to-noise ratio [B].
            text: embeddings [B, L, D] and mask [B, L].
            condition: from `augment_low_res` for a super-resolution stage, and from `mask_known` for one that inpaints;
                `row_positions` [B, H] and `column_positions` [B, W] where pixels are not spread evenly over the images
                of training; otherwise empty.
            control: what the attention of edited examples takes over from their sources; None for nothing.
            dropout_keys: one for each example [B]; None for no dropout.

        Returns:
            (prediction, v), both [B, H, W, C]; v interpolates the log-variance of a reverse step, and is None where
            variances are not learned.
        """
        z, logsnr, text, condition = self.network.constrain(
            (z, logsnr, text, condition), (IMAGE, VECTOR, TEXT_CONDITION_AXES, CONDITION_AXES)
        )
        positions = None
        if "row_positions" in condition:
            positions = condition["row_positions"], condition["column_positions"]
        output = self.network.apply(
            {"params": network_params(self.config, params)},
            z,
            self._noise_level(logsnr),
            *text,
            condition.get("low_res"),
            condition.get("aug_level"),
            dropout_keys,
            condition.get("known"),
            control,
            positions,
        )
        assert isinstance(output, jax.Array)  # no mutable collections: nothing else comes back
        channels = self.config.z_channels
        return output[..., :channels], output[..., channels:] if self.learns_variance else None

    def _noise_level(self, logsnr: jax.Array) -> jax.Array:
        """Returns a noise level as the network is conditioned on it."""
        return _NOISE_LEVELS.get(self.config.model.network, cosine_time)(logsnr)

    def aug_noise_shape(self, low_res: jax.Array) -> tuple[int, ...]:
        """Returns the shape of the noise that `augment_low_res` takes for images [B, h, w, C], or crops of them."""
        if not self.config.diffusion.aug_after_resize:
            return low_res.shape
        return (len(low_res), *enlarged_size(self, low_res), low_res.shape[-1])

    def augment_low_res(self, low_res: jax.Array, aug_level: jax.Array, eps: jax.Array) -> dict[str, jax.Array]:
        """Applies noise conditioning augmentation (arXiv:2205.11487, Section 2.3).

        Args:
            low_res: images, or crops of them, [B, h, w, C].
            aug_level: noise levels [B] in [0, 1].
            eps: Gaussian noise, of `aug_noise_shape`.

        Returns:
            `low_res`, with noise and resized to the stage's image size (for a crop, to the crop's), and `aug_level`
            [B], as the network gets them.
        """
        settings, size = self.config.diffusion, enlarged_size(self, low_res)
        alpha, sigma = self.aug_schedule.alpha(aug_level), self.aug_schedule.sigma(aug_level)
        if settings.aug_after_resize:
            condition = add_noise(resize(low_res, *size, settings.align_corners), eps, alpha, sigma)
        else:
            condition = resize(add_noise(low_res, eps, alpha, sigma), *size, settings.align_corners)
        return {"low_res": condition, "aug_level": self._noise_level(self.aug_schedule.logsnr(aug_level))}

    def mask_known(self, image: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        """Returns what a stage that inpaints sees of an image (arXiv:2212.06909, Section 3.1).

        Args:
            image: [B, H, W, C] in [-1, 1].
            mask: [B, H, W, 1] in [0, 1]; where it is above 0, nothing is seen.

        Returns:
            `known` [B, H, W, C + 1]: the image, 0 where it is to be drawn, and the mask, 1 there.
        """
        drawn = mask > 0
        return {"known": jnp.concatenate([jnp.where(drawn, 0.0, image), drawn.astype(image.dtype)], axis=-1)}

    def unknown(self, shape: tuple[int, ...]) -> dict[str, jax.Array]:
        """Returns what `mask_known` gives for images of a shape (B, H, W, C) that are to be drawn in full."""
        return self.mask_known(jnp.zeros(shape), jnp.ones((*shape[:-1], 1)))

    def encode(self, params: Any, images: jax.Array) -> jax.Array:
        """Returns images [B, H, W, C] in [-1, 1] as the network sees them: as they are, or as latents [B, h, w, c]."""
        return images if self.codec is None else self.codec.encode(params[CODEC], images)

    def decode(self, params: Any, z: jax.Array) -> jax.Array:
        """Returns the images [B, H, W, C], clipped to [-1, 1], of what the network draws, at time 0."""
        images = z if self.codec is None else self.codec.decode(params[CODEC], z)
        return jnp.clip(images, -1.0, 1.0)

    def encode_condition(self, params: Any, condition: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns a condition from `mask_known` of pixels as one of what the network sees."""
        if self.codec is None or "known" not in condition:
            return condition
        image, mask = jnp.split(condition["known"], [self.config.channels], axis=-1)
        return condition | self.mask_known(*self.codec.encode_known(params[CODEC], image, mask))


def enlarged_size(stage: Stage, low_res: jax.Array) -> Size:
    """Returns (height, width) of a super-resolution stage's images for low-resolution ones [B, h, w, C], or crops."""
    return scale_size(low_res.shape[1:3], stage.low_res_shape[:2], stage.image_shape[:2])


def build(config: StageConfig, text_width: int | None = None) -> Stage:
    """Returns the stage that a config describes.

    Args:
        config: the stage.
        text_width: D of the text embeddings; by default that of the encoder that the config names.

    Raises:
        ConfigError: there is no such encoder, and no `text_width`; or the config is that of a codec.
    """
    if config.is_codec:
        raise codec_error()
    return Stage(
        config=config,
        network=make_network(config),
        text_width=make_encoder(config.text).width if text_width is None else text_width,
        schedule=schedules.get_schedule(config.diffusion.schedule, config.diffusion.schedule_shift),
        aug_schedule=schedules.get_schedule(config.diffusion.aug_schedule, config.diffusion.aug_schedule_shift),
        aug_levels=aug_level_distribution(config),
        masks=mask_distribution(config.inpainting) if config.inpainting.enabled else None,
        codec=Codec.of(config.codec.model, config.channels) if config.codec.has_latents else None,
    )


def codec_error() -> ConfigError:
    """Returns the error for a codec in the place of a stage that draws images."""
    return ConfigError(
        "model.network 'kl_vae' is a codec, which draws no images: give a stage that is trained on its latents, with "
        "codec.kind='kl_vae' and codec.path"
    )


def make_network(config: StageConfig) -> Network:
    """Returns the network that a config describes; no text encoder is needed."""
    fields = config.model.to_dict()
    network = NETWORKS[fields.pop("network")]
    fields["dtype"] = DTYPES[fields["dtype"]]
    if config.is_vae:
        outputs = num_parameters(config.channels, config.vae.components)
    else:
        outputs = (2 if config.diffusion.variance_type == "learned" else 1) * config.z_channels
    return network(
        image_channels=config.z_channels,
        out_channels=outputs,
        remat=config.training.remat,
        constrain=no_constraint,
        **fields,
    )


def network_arguments(config: StageConfig, text_width: int, size: Size) -> list[Any]:
    """Returns the arguments of a config's network for one image of a size, as abstract arrays or None, in order.

    The noise of a VAE's groups of latents is a tuple of them.

    Args:
        config: the stage.
        text_width: D of the text embeddings, so that the text encoder is not needed.
        size: (height, width) of the image, in pixels.
    """
    height, width = (side // config.latent_factor for side in size)
    image = jax.ShapeDtypeStruct((1, height, width, config.z_channels), jnp.float32)
    level = jax.ShapeDtypeStruct((1,), jnp.float32)
    text = jax.ShapeDtypeStruct((1, config.text.length, text_width), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, config.text.length), jnp.bool_)
    condition = [image, level] if config.is_super_resolution else []
    network = make_network(config)
    if isinstance(network, HVAE):
        shapes = network.latent_shapes(size)
        noise = tuple(jax.ShapeDtypeStruct((1, *shape), jnp.float32) for shape in shapes)
        return [image, noise, text, mask, *condition]
    arguments = [image, level, text, mask, *condition]
    if not config.inpainting.enabled:
        return arguments
    known = jax.ShapeDtypeStruct((1, height, width, config.z_channels + 1), jnp.float32)
    # neither a low-resolution image, if there is none, nor dropout keys
    return [*arguments, *[None] * (_KNOWN_POSITION - len(arguments)), known]


def check_rows(config: StageConfig, spatial: int) -> None:
    """Checks that `spatial` devices can share the rows of a config's images, at all levels alike.

    Raises:
        ConfigError: a height is not divisible.
    """
    multiple = spatial * config.side_multiple
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
