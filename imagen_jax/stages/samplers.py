"""The sampler of a stage of any kind."""

from __future__ import annotations

from jax.sharding import Mesh

from imagen_jax.stages.stage import Stage
from imagen_jax.stages.stage_sampler import StageSampler
from imagen_jax.stages.vae_sampler import VAESampler

AnySampler = StageSampler | VAESampler


def make_stage_sampler(stage: Stage, mesh: Mesh) -> AnySampler:
    """Returns the sampler of a diffusion stage or of a VAE. Raises ConfigError if its rows cannot be sharded."""
    return VAESampler(stage, mesh) if stage.is_vae else StageSampler(stage, mesh)
