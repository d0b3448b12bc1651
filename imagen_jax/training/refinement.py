"""Training to refine the images of a VAE: it reconstructs each training image, and the network sees the reconstruction.

DiffuseVAE (arXiv:2201.00308), formulation 1. In sampling the VAE is the stage before, whose own samples are refined.

WORKDIR/low_res_vae.json     which weights of the VAE a run reads, from its first step to its last

The VAE is frozen and stays where it is: its weights are neither in checkpoints nor in the optimizer's state.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import to_float
from imagen_jax.pipelines.find_vae import find_vae
from imagen_jax.pipelines.loading import TrainedStage, load_stage
from imagen_jax.stages.base import Base, read_base, save_base
from imagen_jax.stages.checkpoints import has_checkpoint
from imagen_jax.stages.loss import DiffusionBatch
from imagen_jax.stages.stage import Stage, build
from imagen_jax.stages.text import null_text
from imagen_jax.stages.vae import VAEInputs, reconstruct_inputs
from imagen_jax.stages.weights import LATEST_EMA, WeightsChoice
from imagen_jax.text.encoder import TextCondition, TextEncoder
from imagen_jax.training.diffusion import DiffusionObjective, noised_examples
from imagen_jax.training.objective import Batch
from imagen_jax.training.stage_objective import draw_text, encode_text

KEY = "diffusion.low_res_vae"
VAE_FILE = "low_res_vae.json"
_VAE_KEY = 2**17  # folded into a step's key; see `diffusion`


class RefinementNetworks(NamedTuple):
    """The parameters of the frozen networks that a stage is trained with."""

    encoder: Any
    vae: Any


@dataclasses.dataclass(frozen=True)
class RefinementObjective(DiffusionObjective):
    """The diffusion objective of a stage that refines; its frozen networks are `RefinementNetworks`.

    Attributes:
        vae: the VAE.
    """

    vae: Stage

    def with_mesh(self, mesh: Mesh) -> Self:
        """Returns the objective with networks that shard their activations."""
        return dataclasses.replace(super().with_mesh(mesh), vae=self.vae.with_mesh(mesh))

    def draw(self, networks: RefinementNetworks, batch: Batch, key: jax.Array, step: jax.Array) -> DiffusionBatch:
        """Returns the examples of a batch, whose low-resolution images are reconstructions."""

        def text_of(key: jax.Array) -> TextCondition:
            return draw_text(self.stage, self.encoder, networks.encoder, batch, key)

        low_res = self.reconstruct(networks, batch, jax.random.fold_in(key, _VAE_KEY))
        return noised_examples(self.stage, batch, key, text_of, low_res)

    def reconstruct(self, networks: RefinementNetworks, batch: Batch, key: jax.Array) -> jax.Array:
        """Returns the VAE's reconstructions of a batch's images, [B, H, W, C], see `reconstruct_inputs`.

        The VAE reads every caption, also where the network does not: in sampling the one before it does.
        """
        config, x = self.vae.config, to_float(batch["image"])
        null = null_text(config.diffusion.null_text, self.encoder, networks.encoder)

        def repeat(value: Any) -> jax.Array:
            value = jnp.asarray(value)
            return jnp.broadcast_to(value, (len(x), *value.shape))

        inputs = VAEInputs(
            text=encode_text(self.encoder, networks.encoder, batch),
            null_text=TextCondition(*map(repeat, null)),
            uses_text=repeat(config.sampling.guidance_scale),
            keys=jax.random.split(key, len(x)),
            low_res=None,
            z=None,
            temperature=repeat(1.0),
            aug_level=repeat(0.0),
        )
        return reconstruct_inputs(self.vae, (x.shape[1], x.shape[2]), networks.vae, inputs, x)


class LowResVAE:
    """The VAE of `diffusion.low_res_vae`.

    Args:
        config: of the stage that refines its images.
        text_width: D of the text embeddings.

    Attributes:
        stage: the VAE.

    Raises:
        ConfigError: as `find_vae`.
    """

    def __init__(self, config: StageConfig, text_width: int) -> None:
        self._name = config.diffusion.low_res_vae
        self._folder, vae_config = find_vae(KEY, self._name, config)
        self.stage = build(vae_config, text_width)

    def load(self, mesh: Mesh, workdir: Path) -> TrainedStage:
        """Returns the VAE with its weights on a mesh: the newest EMA, or for a run that resumes those it began with.

        Raises:
            ConfigError: there are no such weights, or they are others than those of the run.
            TrainingError: they are damaged.
        """
        choice, base = LATEST_EMA, None
        if has_checkpoint(workdir):
            base = read_base(workdir / VAE_FILE)
            choice = WeightsChoice(base.step, base.weights)
        try:
            trained = load_stage(self._folder, self.stage.config, mesh, self.stage.text_width, choice)
        except ConfigError as error:
            raise ConfigError(*(f"{KEY} {self._name!r}: {problem}" for problem in error.problems)) from error
        if base is not None and trained.checksum != base.checkpoint:
            raise ConfigError(
                f"{KEY} {self._name!r} has other weights at step {base.step} than those the run {workdir} began with: "
                f"give the folder of the VAE whose checkpoint {base.checkpoint[:12]} {workdir / VAE_FILE} names"
            )
        return trained

    def record(self, workdir: Path, trained: TrainedStage) -> None:
        """Names the weights in the folder of a run that starts; all processes call it."""
        kind: Any = trained.weights
        folder = str(trained.folder.absolute())
        save_base(workdir, Base(folder=folder, step=trained.step, weights=kind, checkpoint=trained.checksum), VAE_FILE)


def open_low_res_vae(config: StageConfig, encoder: TextEncoder) -> LowResVAE | None:
    """Returns the VAE whose images a stage refines; None for a stage that does not. Raises ConfigError."""
    return LowResVAE(config, encoder.width) if config.refines else None
