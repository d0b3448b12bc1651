"""Drafts: images of a VAE, with noise, from which the base stage of a cascade starts in place of noise alone.

As SDEdit (arXiv:2108.01073) starts from a user's image, and DiffuseVAE (arXiv:2201.00308) from a VAE's.
"""

from __future__ import annotations

import dataclasses

import jax
from jax.sharding import Mesh

from imagen_jax.pipelines.find_vae import find_vae
from imagen_jax.pipelines.loading import TrainedStage, load_stage
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
    folder, config = find_vae("sampling.draft", name, stage.config)
    trained = load_stage(folder, config, mesh, stage.text_width)
    return Draft(trained, VAESampler(trained.stage, mesh))
