"""What a stage of any kind is measured by on real images, and by what its checkpoints are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from imagen_jax.evaluation.vae_validation import BOUND, make_vae_validation
from imagen_jax.evaluation.validation_loss import make_validation_loss, mean_validation_loss, validation_metrics
from imagen_jax.stages.stage import Stage
from imagen_jax.text.encoder import TextCondition


def make_validation(stage: Stage, mesh: Mesh, batch_size: int) -> Callable[..., dict[str, float]]:
    """Returns a function `(params, images [N, H, W, C], text, low_res=None) -> metrics`.

    For a diffusion stage these are `validation_metrics`, and `low_res` are the images [N, h, w, C] in [-1, 1] that it
    starts from, by default downsampled ones. For a VAE they are those of `make_vae_validation`.

    Args:
        stage: the stage to evaluate.
        mesh: batches are split over all its devices.
        batch_size: images at once.
    """
    if stage.is_vae:
        vae = make_vae_validation(stage, mesh, batch_size)
        return lambda params, images, text, low_res=None: vae(params, images, text)
    validation_loss = make_validation_loss(stage, mesh, batch_size)

    def validate(
        params: Any, images: np.ndarray, text: TextCondition, low_res: np.ndarray | None = None
    ) -> dict[str, float]:
        return validation_metrics(validation_loss(params, images, text, low_res))

    return validate


def validation_score(metrics: dict[str, float]) -> float:
    """Returns what checkpoints are compared by, lower is better: the bound, or the mean loss over noise levels."""
    return metrics[BOUND] if BOUND in metrics else mean_validation_loss(metrics)
