"""Whether a config fits the devices it would run on, before anything is compiled, loaded or written."""

from __future__ import annotations

import jax

from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import collect_errors
from imagen_jax.parallel.mesh import check_batch_size, make_mesh
from imagen_jax.stages.stage import check_rows


def check_training(config: StageConfig, devices: list[jax.Device] | None = None) -> None:
    """Checks that the mesh fits the devices, and that batches and rows of images fit the mesh.

    Args:
        config: the stage; whether its values fit together is known since it was loaded.
        devices: those that it would run on; None for all.

    Raises:
        ConfigError: with everything that does not fit.
    """
    mesh = make_mesh(config.mesh.axes, devices)
    collect_errors(
        lambda: check_batch_size(config.training.batch_size, mesh, config.training.grad_accum_steps),
        lambda: check_rows(config, mesh.shape["spatial"]),
    )
