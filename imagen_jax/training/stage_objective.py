"""What a stage of the cascade is trained to do: to denoise, or to be a VAE."""

from __future__ import annotations

from imagen_jax.stages.stage import Stage
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.training.diffusion import DiffusionObjective
from imagen_jax.training.vae import VAEObjective


def make_objective(stage: Stage, encoder: TextEncoder) -> DiffusionObjective | VAEObjective:
    """Returns the objective of a stage, whose captions an encoder encodes."""
    return VAEObjective(stage, encoder) if stage.is_vae else DiffusionObjective(stage, encoder)
