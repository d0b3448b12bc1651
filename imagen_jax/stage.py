"""A stage of the cascade: what its config means, and what training and sampling share.

A stage is a network that sees through noise at one image size, with its text encoder and noise schedule; a
super-resolution stage also sees the stage before it. Images are [-1, 1] inside, uint8 outside.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from imagen_jax import schedules
from imagen_jax.diffusion import PREDICTIONS, WEIGHTS, Prediction, add_noise
from imagen_jax.errors import UsageError
from imagen_jax.models.denoiser import REMAT, Denoiser
from imagen_jax.models.efficient_unet import EfficientUNet
from imagen_jax.models.unet import UNet
from imagen_jax.resizing import resize
from imagen_jax.schedules import Schedule, noise_angle
from imagen_jax.sharding import check_rules
from imagen_jax.text.encoder import TextEncoder, load_encoder

NETWORKS: dict[str, type[Denoiser]] = {"unet": UNet, "efficient_unet": EfficientUNet}
# fields of a network that do not stand in config.model: flax's own, and what follows from the rest of the config
GIVEN_FIELDS = ("parent", "name", "image_channels", "out_channels", "remat")
VARIANCES = ("fixed", "learned")
UNCONDITIONALS = ("zero", "empty")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a config describes, built.

    Attributes:
        config: as in ``configs/``.
        network: the U-Net; its parameters live outside.
        encoder: the frozen text encoder.
        schedule: the noise schedule of training and, unless told otherwise, of sampling.
        aug_schedule: that of the noise in the low-resolution condition.
    """

    config: ml_collections.ConfigDict
    network: Denoiser
    encoder: TextEncoder
    schedule: Schedule
    aug_schedule: Schedule

    @property
    def is_super_resolution(self) -> bool:
        """Whether the stage needs a low-resolution image."""
        return self.config.low_res_size > 0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of its images."""
        return self.config.image_size, self.config.image_size, self.config.channels

    @property
    def low_res_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images it starts from."""
        return self.config.low_res_size, self.config.low_res_size, self.config.channels

    @property
    def prediction(self) -> Prediction:
        """What its network predicts."""
        return self.config.diffusion.prediction

    @property
    def learns_variance(self) -> bool:
        """Whether its network says the variance of reverse steps too."""
        return self.config.diffusion.variance == "learned"

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters, a plain nested dict; call it under ``jax.jit`` with ``out_shardings``."""
        arguments = network_arguments(self.config, self.encoder.width, self.config.image_size)
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
        mask = jnp.arange(self.encoder.length) < 1
        tokens = jnp.where(mask, self.encoder.tokenize.eos_id, 0)
        return self.encoder.encode(encoder_params, tokens[None], mask[None])[0], mask

    def condition_on(self, low_res: jax.Array, aug_level: jax.Array, eps: jax.Array) -> dict[str, jax.Array]:
        """Noise conditioning augmentation (arXiv:2205.11487, Section 2.3): low_res [B, h, w, C] as the network gets it.

        ``low_res`` gets the noise of ``aug_level`` [B] in [0, 1], made of ``eps`` of its shape, and the stage's size;
        if it is of a crop, the crop's.
        """
        size = low_res.shape[1] * self.config.image_size // self.config.low_res_size
        alpha, sigma = self.aug_schedule.alpha(aug_level), self.aug_schedule.sigma(aug_level)
        noisy = add_noise(low_res, eps, alpha, sigma)
        return {
            "low_res": resize(noisy, size, size),
            "aug_level": noise_angle(self.aug_schedule.logsnr(aug_level)),
        }


def build(config: ml_collections.ConfigDict) -> Stage:
    """The stage that a config describes. Raises UsageError where the config cannot work."""
    network = make_network(config)
    try:
        encoder = load_encoder(config.text.model, config.text.length, DTYPES[config.text.dtype])
    except ValueError as error:
        raise UsageError(f"config.text: {error}") from error
    return Stage(
        config=config,
        network=network,
        encoder=encoder,
        schedule=schedules.by_name(config.diffusion.schedule, config.diffusion.schedule_shift),
        aug_schedule=schedules.by_name(config.diffusion.aug_schedule, config.diffusion.aug_schedule_shift),
    )


def make_network(config: ml_collections.ConfigDict) -> Denoiser:
    """The network that a config describes; no text encoder is needed. Raises UsageError as ``build``."""
    check(config)
    model = config.model.to_dict()
    network = NETWORKS[model.pop("network")]
    fields = {name: freeze(value) for name, value in model.items()}
    fields["dtype"] = DTYPES[fields["dtype"]]
    expected = {field.name for field in dataclasses.fields(network)} - set(GIVEN_FIELDS)
    if set(fields) != expected:
        missing, surplus = ", ".join(sorted(expected - set(fields))), ", ".join(sorted(set(fields) - expected))
        raise UsageError(
            f"config.model does not fit {config.model.network}: missing [{missing}], not known to it [{surplus}]"
        )
    outputs = 2 if config.diffusion.variance == "learned" else 1
    return network(
        image_channels=config.channels,
        out_channels=outputs * config.channels,
        remat=config.training.remat,
        **fields,
    )


def network_arguments(config: ml_collections.ConfigDict, text_width: int, size: int) -> list[jax.ShapeDtypeStruct]:
    """What a config's network is called with for one image of ``size`` × ``size``, as abstract arrays, in order.

    ``text_width`` is D of the text embeddings, so that a network can be looked at without its text encoder.
    """
    image = jax.ShapeDtypeStruct((1, size, size, config.channels), jnp.float32)
    level = jax.ShapeDtypeStruct((1,), jnp.float32)
    text = jax.ShapeDtypeStruct((1, config.text.length, text_width), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, config.text.length), jnp.bool_)
    condition = [image, level] if config.low_res_size else []
    return [image, level, text, mask, *condition]


def training_size(config: ml_collections.ConfigDict) -> int:
    """Rows and columns of what the network sees in training: of a crop if the config asks for them, else of images."""
    return config.data.crop_size or config.image_size


def freeze(value: Any) -> Any:
    """Lists, as JSON gives them, as the tuples that a module's fields must be."""
    return tuple(freeze(item) for item in value) if isinstance(value, (list, tuple)) else value


def check(config: ml_collections.ConfigDict) -> None:
    """Raises UsageError for what can be seen to be wrong before anything is built."""
    model = config.model
    choices = {
        "model.network": (model.network, NETWORKS),
        "model.dtype": (model.dtype, DTYPES),
        "text.dtype": (config.text.dtype, DTYPES),
        "training.remat": (config.training.remat, REMAT),
        "diffusion.prediction": (config.diffusion.prediction, PREDICTIONS),
        "diffusion.weight": (config.diffusion.weight, WEIGHTS),
        "diffusion.variance": (config.diffusion.variance, VARIANCES),
        "diffusion.unconditional": (config.diffusion.unconditional, UNCONDITIONALS),
        "diffusion.schedule": (config.diffusion.schedule, schedules.SCHEDULES),
        "diffusion.aug_schedule": (config.diffusion.aug_schedule, schedules.SCHEDULES),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise UsageError(f"config.{name} {value!r} is not known: choose one of {', '.join(allowed)}")
    for name in ("min_snr_gamma", "sigma_data", "vlb_weight"):
        if not 0 < config.diffusion[name] < math.inf:
            raise UsageError(f"config.diffusion.{name} {config.diffusion[name]} must be above 0 and finite")
    if not 0 <= config.diffusion.caption_dropout <= 1:
        raise UsageError(f"config.diffusion.caption_dropout {config.diffusion.caption_dropout} is not in [0, 1]")
    check_rules(config.sharding_rules)
    levels = len(model.multipliers)
    for name in ("blocks", "attention"):
        if len(model[name]) != levels:
            raise UsageError(
                f"config.model.{name} has {len(model[name])} entries for the {levels} levels of model.multipliers: "
                "give one a level"
            )
    multiple = model.patch * 2 ** (levels - (model.network == "unet"))
    if config.image_size % multiple:
        raise UsageError(
            f"config.image_size {config.image_size} is not a multiple of {multiple}, which patches of {model.patch} "
            f"(model.patch) and {levels} levels (model.multipliers) need"
        )
    for multiplier, kinds in zip(model.multipliers, model.attention, strict=True):
        channels = multiplier * model.channels
        if kinds and channels % model.head_channels:
            raise UsageError(
                f"config.model.head_channels {model.head_channels} does not divide the {channels} channels of a level"
            )
    if config.low_res_size and not 0 < config.low_res_size < config.image_size:
        raise UsageError(
            f"config.low_res_size {config.low_res_size} must be below config.image_size {config.image_size}"
        )
    if config.data.crop_size:
        check_crops(config, multiple)


def check_crops(config: ml_collections.ConfigDict, multiple: int) -> None:
    """Raises UsageError unless a network that needs a ``multiple`` of pixels can be trained on the config's crops."""
    size = config.data.crop_size
    if not 0 < size <= config.image_size:
        raise UsageError(
            f"config.data.crop_size {size} is not in [1, {config.image_size}]: a crop is part of an image of "
            f"config.image_size {config.image_size}; 0 trains on whole images"
        )
    if config.model.positions:
        raise UsageError(
            f"config.model.positions {config.model.positions} ties the network to whole images, and "
            f"config.data.crop_size {size} trains it on crops: set one of them to 0"
        )
    if size % multiple:
        raise UsageError(
            f"config.data.crop_size {size} is not a multiple of {multiple}, which patches of {config.model.patch} "
            f"(model.patch) and {len(config.model.multipliers)} levels (model.multipliers) need"
        )
    if size * config.low_res_size % config.image_size:
        step = config.image_size // math.gcd(config.image_size, config.low_res_size)
        raise UsageError(
            f"config.data.crop_size {size} is not a multiple of {step}: from config.image_size {config.image_size} to "
            f"config.low_res_size {config.low_res_size} it would not become whole pixels"
        )


def to_float(images: jax.Array) -> jax.Array:
    """uint8 images as float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(images: np.ndarray | jax.Array) -> np.ndarray:
    """Images in [-1, 1] as uint8, clipped and rounded."""
    return np.asarray(jnp.clip(jnp.round((jnp.asarray(images) + 1.0) * 127.5), 0, 255).astype(jnp.uint8))
