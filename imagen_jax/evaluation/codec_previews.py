"""Previews of a codec: images beside their reconstructions, and how far these are from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from imagen_jax.data.dataset import first_examples
from imagen_jax.datasets.from_config import make_examples
from imagen_jax.evaluation.cascade_metrics import color_drift
from imagen_jax.images.array import to_float, to_uint
from imagen_jax.images.grid import image_grid
from imagen_jax.parallel import multihost, runtime
from imagen_jax.parallel.axes import IMAGE
from imagen_jax.parallel.batching import batch_sharding, pad_batch, padded_size, shard_host_batch
from imagen_jax.parallel.mesh import num_batch_shards
from imagen_jax.parallel.sharding import replicate_conv_kernels
from imagen_jax.stages.codec_loss import CodecModel

COLUMNS = 4
_PREFIX = "reconstruction/"


def reconstruction_metrics(images: np.ndarray, reconstructions: np.ndarray) -> dict[str, float]:
    """Returns how far reconstructions are from images, means over images by name.

    `l1` is the mean absolute error, and `color_drift` the mean absolute difference of the mean color of an image, each
    of levels in [0, 255]; `psnr` is in dB, of the mean squared error over all images.

    Args:
        images: uint8 or uint16 [N, H, W, C].
        reconstructions: of the same shape and type.
    """
    scale = 255 / np.iinfo(images.dtype).max
    error = (reconstructions.astype(np.float64) - images) * scale
    return {
        f"{_PREFIX}l1": float(np.abs(error).mean()),
        f"{_PREFIX}psnr": 10 * math.log10(255**2 / max(float(np.square(error).mean()), 1e-9)),
        f"{_PREFIX}color_drift": float(np.abs(color_drift(reconstructions, images)).mean()),
    }


def make_codec_preview(model: CodecModel, mesh: Mesh) -> Callable[[Any], tuple[Image.Image, dict[str, float]]]:
    """Returns a function `params -> (grid, metrics)` for the first examples of the validation split.

    The grid has each image and, after it, its reconstruction.
    """
    config = model.config
    examples = make_examples(config.data, config.data.validation_split, config.image_hw, config.channels)
    real, captions = first_examples(examples, config.training.preview_count)
    size = padded_size(len(real), num_batch_shards(mesh))
    model = model.with_mesh(mesh)

    def reconstruct(params: Any, images: jax.Array) -> jax.Array:
        params = replicate_conv_kernels(params, mesh)
        return to_uint(model.reconstruct(params, to_float(images)), real.dtype)

    program = jax.jit(
        reconstruct, out_shardings=batch_sharding(mesh, IMAGE), compiler_options=runtime.compiler_options(mesh)
    )

    def preview(params: Any) -> tuple[Image.Image, dict[str, float]]:
        batch = shard_host_batch({"image": pad_batch(real, size)}, IMAGE, mesh)["image"]
        images = multihost.all_gather(program(params, batch))[: len(real)]
        pairs = np.stack([real, images], axis=1).reshape(-1, *real.shape[1:])
        texts = [text for caption in captions for text in (caption, "reconstruction")]
        return image_grid(pairs, texts, COLUMNS), reconstruction_metrics(real, images)

    return preview
