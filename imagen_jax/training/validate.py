"""Checks that a config fits the devices, before anything is compiled, loaded or written."""

from __future__ import annotations

import jax

from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import collect_errors
from imagen_jax.parallel.mesh import check_batch_size, make_mesh
from imagen_jax.stages.stage import check_rows


def check_training(config: StageConfig, devices: list[jax.Device] | None = None) -> None:
    """Checks that the mesh fits the devices, and that batches and rows of images fit the mesh.

    Args:
        config: the stage; loading has already checked that its values fit together.
        devices: the devices to run on; None for all.

    Raises:
        ConfigError: with all problems at once.
    """
    mesh = make_mesh(config.mesh.axes, devices)
    collect_errors(
        lambda: check_batch_size(config.training.batch_size, mesh, config.training.grad_accum_steps),
        lambda: check_rows(config, mesh.shape["spatial"]),
    )
