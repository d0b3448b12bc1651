"""Drafts: images of a VAE, with noise, from which the base stage of a cascade starts in place of noise alone.

As SDEdit (arXiv:2108.01073) starts from a user's image, and DiffuseVAE (arXiv:2201.00308) from a VAE's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from imagen_jax.errors import ConfigError
from imagen_jax.images.array import format_size
from imagen_jax.pipelines.find_stages import find_stages
from imagen_jax.pipelines.loading import TrainedStage, load_stage, read_chain
from imagen_jax.stages.stage import Stage
from imagen_jax.stages.stage_sampler import StageRequest
from imagen_jax.stages.vae_sampler import VAESampler

# index of the draft among the stages whose keys are folded: no cascade has so many
DRAFT_STAGE = 2**16


@dataclasses.dataclass(frozen=True)
class Draft:
    """A VAE that drafts the images of a stage.

    Attributes:
        trained: the VAE with its weights.
        sampler: of the VAE.
    """

    trained: TrainedStage
    sampler: VAESampler

    def images(self, request: StageRequest, keys: jax.Array) -> jax.Array:
        """Returns the drafts [B, H, W, C] in [-1, 1] of a stage's request, for keys [B] of their own."""
        own = StageRequest(request.text, request.null_text, keys, size=request.size, isolated=request.isolated)
        return self.sampler.sample(self.trained.params, own)


def open_draft(name: str, stage: Stage, mesh: Mesh) -> Draft:
    """Returns the draft of a stage.

    Args:
        name: of the VAE's stage, as for `find_stages`.
        stage: the stage that starts from its images.
        mesh: the devices.

    Raises:
        ConfigError: there is no such stage, it is not a VAE, or its images or its text encoder are others.
    """
    folders = find_stages(name, text_encoder=False)
    if len(folders) != 1:
        raise ConfigError(f"sampling.draft {name!r} has {len(folders)} stages: give the folder of a single VAE")
    (config,) = read_chain(folders)
    wanted: Any = stage.config
    if not config.is_vae:
        raise ConfigError(f"sampling.draft {name!r} is a diffusion model: give the folder of a VAE")
    if (config.image_hw, config.channels) != (wanted.image_hw, wanted.channels):
        raise ConfigError(
            f"sampling.draft {name!r} draws images of {format_size(config.image_hw)} with {config.channels} channels, "
            f"and the stage of {format_size(wanted.image_hw)} with {wanted.channels}: give a VAE of the same size"
        )
    if (config.text.model, config.text.length) != (wanted.text.model, wanted.text.length):
        raise ConfigError(
            f"sampling.draft {name!r} reads text by {config.text.model!r} with {config.text.length} tokens, and the "
            f"stage by {wanted.text.model!r} with {wanted.text.length}: give a VAE with the same text encoder"
        )
    trained = load_stage(folders[0], config, mesh, stage.text_width)
    return Draft(trained, VAESampler(trained.stage, mesh))
