"""The folder that edited images are written to; it is like that of `imagen sample`, see `output_dir`.

OUT/samples.json      the edit, prompts, seed, and for each stage its step, checkpoint and settings
OUT/images/NNNN.png   the edited images
OUT/samples.png       a grid of what was given and of them
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.images.grid import image_grid, save_png
from imagen_jax.parallel import multihost
from imagen_jax.pipelines import output_dir
from imagen_jax.pipelines.imagen import ImagenPipeline

MAX_GRID = 100  # images of the grid


def prepare(out: Path, pipeline: ImagenPipeline, edit: Mapping[str, Any], overwrite: bool) -> None:
    """Prepares a folder for edited images.

    Args:
        out: the folder.
        pipeline: the cascade.
        edit: all that decides the images, as JSON.
        overwrite: whether images of another edit are removed.

    Raises:
        ConfigError: it has images of another edit, or of samples, and `overwrite` is False.
    """
    draft = pipeline.draft
    if multihost.is_main_process():
        manifest = {"edit": dict(edit), "stages": output_dir.stages_manifest(pipeline.stages, draft)}
        manifest |= output_dir.checker_manifest(pipeline.safety_checker)
        output_dir.prepare(out, json.loads(json.dumps(manifest)), overwrite)


def save(out: Path, images: np.ndarray, captions: Sequence[str], given: Sequence[tuple[np.ndarray, str]]) -> None:
    """Writes edited images [N, H, W, C], and the grid that shows them after what was given.

    Args:
        out: the folder.
        images: uint8 or uint16 [N, H, W, C].
        captions: N texts for the grid.
        given: images [h, w, C] to show first, with their captions; those of another size are left out.
    """
    if not multihost.is_main_process():
        return
    output_dir.save(out, dict(enumerate(images)), {index: {} for index in range(len(images))})
    shown = [(image, text) for image, text in given if image.shape == images.shape[1:] and image.dtype == images.dtype]
    shown += list(zip(images, captions, strict=True))
    grid = [image for image, _ in shown[:MAX_GRID]], [text for _, text in shown[:MAX_GRID]]
    columns = math.ceil(math.sqrt(len(grid[0])))
    save_png(image_grid(np.stack(grid[0]), grid[1], columns), out / output_dir.SHEET)
