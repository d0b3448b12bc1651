"""Whether a config can be trained at all, before anything is compiled, loaded or written."""

from __future__ import annotations

import jax
import ml_collections

from imagen_jax.errors import collect_errors
from imagen_jax.parallel import sharding
from imagen_jax.stages import stage as stages
from imagen_jax.stages.sampling import check_sampling
from imagen_jax.training.optimizers import make_optimizer


def check_training(config: ml_collections.ConfigDict, devices: list[jax.Device] | None = None) -> None:
    """Raises UsageError for all mistakes of a config, of its values first, then of what cannot work together.

    ``devices`` are those that it would run on; None for all that there are.
    """
    stages.check(config)
    collect_errors(
        lambda: check_mesh(config, devices),
        lambda: make_optimizer(config.optimizer),
        lambda: check_sampling(config, config.sampling),
    )


def check_mesh(config: ml_collections.ConfigDict, devices: list[jax.Device] | None) -> None:
    """Raises UsageError unless the mesh fits the devices, and batches and rows of images fit the mesh."""
    mesh = sharding.make_mesh(config.mesh, devices)
    collect_errors(
        lambda: sharding.check_batch(config.training.batch_size, mesh, config.training.accumulation),
        lambda: stages.check_rows(config, mesh.shape["spatial"]),
    )
