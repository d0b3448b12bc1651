"""Pictures drawn during training, from the EMA weights, so that a person can watch a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from imagen_jax.cascade import StageSampler
from imagen_jax.data.sources import make_source
from imagen_jax.grids import draw_grid
from imagen_jax.images import to_float, to_whole
from imagen_jax.resizing import resize
from imagen_jax.stage import Stage

COLUMNS = 4
SEED = 0


def make_preview(stage: Stage, mesh: Mesh) -> Callable[[Any, Any], Image.Image]:
    """A function ``(params, encoder_params) -> grid`` of the first captions of the config's validation split.

    A super-resolution stage starts from the data set's own pictures, made small.
    """
    config = stage.config
    source = make_source(config.data, config.data.validation_split, config.image_size)
    examples = [source[i] for i in range(min(config.training.preview_count, len(source)))]
    prompts = [example["caption"] for example in examples]
    low_res = None
    if stage.is_super_resolution:
        images = np.stack([example["image"] for example in examples])
        low_res = to_whole(resize(to_float(jnp.asarray(images)), *stage.low_res_shape[:2]), images.dtype)
    sampler = StageSampler(stage, mesh, place=0)

    def preview(params: Any, encoder_params: Any) -> Image.Image:
        images: np.ndarray = sampler.draw(params, encoder_params, prompts, SEED, 0, low_res)
        return draw_grid(images, prompts, COLUMNS)

    return preview
