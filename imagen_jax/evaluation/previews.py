"""Previews: images sampled with the EMA weights during training, and their metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from imagen_jax.data.dataset import first_examples
from imagen_jax.datasets.from_config import make_examples
from imagen_jax.evaluation.cascade_metrics import compute_metrics
from imagen_jax.evaluation.validation_loss import make_validation_loss, validation_metrics
from imagen_jax.images.array import to_float, to_uint
from imagen_jax.images.grid import image_grid
from imagen_jax.images.resize import resize
from imagen_jax.stages.sampling import StageSampler
from imagen_jax.stages.stage import Stage

COLUMNS = 4
SEED = 0


def make_preview(stage: Stage, mesh: Mesh) -> Callable[[Any, Any], tuple[Image.Image, dict[str, float]]]:
    """Returns a function `(params, encoder_params) -> (grid, metrics)` for the first examples of the validation split.

    The grid has samples for their captions; a super-resolution stage enlarges the downsampled images of the data set.
    The metrics are those of `compute_metrics`, and of `validation_metrics` on the real images.
    """
    config = stage.config
    examples = make_examples(config.data, config.data.validation_split, config.image_hw, config.channels)
    real, prompts = first_examples(examples, config.training.preview_count)
    low_res = None
    if stage.is_super_resolution:
        small = resize(to_float(jnp.asarray(real)), *stage.low_res_shape[:2])
        low_res = np.asarray(to_uint(small, real.dtype))
    sampler = StageSampler(stage, mesh, stage_index=0)
    validation_loss = make_validation_loss(stage, mesh, len(real))

    def preview(params: Any, encoder_params: Any) -> tuple[Image.Image, dict[str, float]]:
        images = sampler.sample(params, encoder_params, prompts, SEED, 0, low_res)
        losses = validation_loss(params, encoder_params, real, prompts)
        metrics = {**compute_metrics(images, low_res, real), **validation_metrics(losses)}
        return image_grid(images, prompts, COLUMNS), metrics

    return preview
