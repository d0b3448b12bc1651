"""Previews: images sampled with the EMA weights during training, and their metrics."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from imagen_jax.data.dataset import first_examples
from imagen_jax.datasets.from_config import make_examples
from imagen_jax.evaluation.cascade_metrics import compute_metrics
from imagen_jax.evaluation.low_res import Reconstruct, downsample
from imagen_jax.evaluation.validation import make_validation
from imagen_jax.images.array import to_uint
from imagen_jax.images.grid import image_grid
from imagen_jax.stages.samplers import make_stage_sampler
from imagen_jax.stages.stage import Stage
from imagen_jax.stages.stage_sampler import NoiseSource, make_request
from imagen_jax.stages.text import PromptEncoder
from imagen_jax.text.encoder import TextCondition

COLUMNS = 4
SEED = 0


def make_preview(
    stage: Stage, mesh: Mesh, reconstruct: Reconstruct | None = None
) -> Callable[[Any, PromptEncoder], tuple[Image.Image, dict[str, float]]]:
    """Returns a function `(params, encoder) -> (grid, metrics)` for the first examples of the validation split.

    The grid has samples for their captions, which an encoder encodes once; a super-resolution stage enlarges the
    downsampled images of the data set. The metrics are those of `compute_metrics`, and of `make_validation` on the real
    images.

    Args:
        stage: the stage.
        mesh: the devices that sample.
        reconstruct: of a stage that refines images of a VAE: makes those that it refines of real ones.
    """
    config = stage.config
    examples = make_examples(config.data, config.data.validation_split, config.image_hw, config.channels)
    real, prompts = first_examples(examples, config.training.preview_count)
    downsampled = downsample(stage, real) if stage.is_super_resolution and reconstruct is None else None
    sampler = make_stage_sampler(stage, mesh)
    validate = make_validation(stage, mesh, len(real))

    @functools.lru_cache(1)
    def encode(encoder: PromptEncoder) -> tuple[TextCondition, np.ndarray | None]:
        """Returns the text of the captions, and the reconstructions of their images if they are refined."""
        texts = encoder.on_host(prompts, len(prompts))
        return texts, None if reconstruct is None else reconstruct(real, encoder, texts)

    def preview(params: Any, encoder: PromptEncoder) -> tuple[Image.Image, dict[str, float]]:
        texts, reconstructed = encode(encoder)
        small = downsampled if reconstructed is None else reconstructed
        request = make_request(stage, encoder, texts, NoiseSource(SEED), small)
        images = sampler.sample_uint(params, request, len(prompts))
        metrics = compute_metrics(images, None if small is None else np.asarray(to_uint(small, real.dtype)), real)
        metrics |= validate(params, real, texts, reconstructed)
        return image_grid(images, prompts, COLUMNS), metrics

    return preview
