"""Which task trains the stage that a config describes."""

from __future__ import annotations

from jax.sharding import Mesh

from imagen_jax.config.schema import StageConfig
from imagen_jax.training.codec_task import CodecTask
from imagen_jax.training.diffusion_task import DiffusionTask
from imagen_jax.training.objective import Task


def make_task(config: StageConfig, mesh: Mesh) -> Task:
    """Returns the task of a stage: of a codec, or of a stage that draws images. Raises ConfigError as they do."""
    return CodecTask(config, mesh) if config.is_codec else DiffusionTask(config, mesh)
