"""The folder of a VAE that a config key names: whose images a diffusion stage starts from, or refines."""

from __future__ import annotations

from pathlib import Path

from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import format_size
from imagen_jax.pipelines.find_stages import find_stages
from imagen_jax.stages.stage_folder import read_config

_TEXT = ("model", "length", "padding", "cleaning")  # keys of a text encoder, of which stages that share one have equals


def find_vae(key: str, name: str, wanted: StageConfig) -> tuple[Path, StageConfig]:
    """Returns the folder of a VAE and its config; no weight is read.

    Args:
        key: the config key that names it, for messages.
        name: of the VAE's stage, as for `find_stages`.
        wanted: the stage that its images are for.

    Raises:
        ConfigError: there is no such stage, it is not a VAE, it enlarges images itself, or its images or its text
            encoder are not those of the other stage.
    """
    try:
        folders = find_stages(name, text_encoder=False)
        if len(folders) != 1:
            raise ConfigError(f"{name!r} has {len(folders)} stages: give the folder of a single VAE")
        config = read_config(folders[0])
        _check(name, config, wanted)
    except ConfigError as error:
        raise ConfigError(*(f"{key}: {problem}" for problem in error.problems)) from error
    return folders[0], config


def _check(name: str, config: StageConfig, wanted: StageConfig) -> None:
    """Raises ConfigError unless a stage is a VAE that samples images for another stage."""
    if not config.is_vae:
        kind = "a codec" if config.is_codec else "a diffusion model"
        raise ConfigError(f"{name!r} is {kind}: give the folder of a VAE, with model.network='hvae'")
    if config.is_super_resolution:
        raise ConfigError(f"{name!r} enlarges the images of another stage: give a VAE with low_res_size=0")
    if (config.image_hw, config.channels) != (wanted.image_hw, wanted.channels):
        raise ConfigError(
            f"{name!r} samples images of {format_size(config.image_hw)} with {config.channels} channels, and the stage "
            f"of {format_size(wanted.image_hw)} with {wanted.channels}: give a VAE of the same size"
        )
    ours, theirs = ([getattr(each.text, field) for field in _TEXT] for each in (wanted, config))
    different = [
        f"text.{field} is {mine!r} and there {other!r}"
        for field, mine, other in zip(_TEXT, ours, theirs, strict=True)
        if mine != other
    ]
    if different:
        raise ConfigError(
            f"{name!r} has another text encoder: {', '.join(different)}: give a VAE with the same text encoder"
        )
