"""Diagnostics of a cascade: what each stage does to its pictures, and its losses on real ones that were held out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from jax.sharding import Mesh

from imagen_jax.data.dataset import first_examples
from imagen_jax.datasets.from_config import make_examples
from imagen_jax.evaluation.cascade_metrics import measure
from imagen_jax.evaluation.validation_loss import make_validation_loss, validation_metrics
from imagen_jax.images.array import in_pixels
from imagen_jax.images.plots import draw_cascade_diagnostics
from imagen_jax.io.atomic import write_json
from imagen_jax.pipelines.loading import TrainedStage

# Real pictures that losses and their saturation are measured on, if as many are drawn: enough for the means.
REAL = 128


def diagnose(
    stages: Sequence[TrainedStage],
    drawn: Sequence[np.ndarray],
    data: ml_collections.ConfigDict,
    batch_size: int,
    mesh: Mesh,
) -> list[dict[str, float]]:
    """What was measured of each stage, by name: of ``measures.measure`` and ``losses.loss_curve``.

    Args:
        stages: of a cascade, base first.
        drawn: the pictures of each, [N, H, W, C].
        data: an evaluation config's ``data``: the source and split of real pictures.
        batch_size: of those whose losses are computed at once.
        mesh: of the stages.
    """
    found = []
    for place, (trained, images) in enumerate(zip(stages, drawn, strict=True)):
        config = trained.stage.config
        examples = make_examples(data, data.split, config.image_size, config.channels)
        real, captions = first_examples(examples, min(REAL, len(images)))
        validation_loss = make_validation_loss(trained.stage, mesh, batch_size)
        losses = validation_loss(trained.params, trained.encoder_params, real, captions)
        low_res = drawn[place - 1] if place else None
        found.append({**measure(images, low_res, real), **validation_metrics(losses)})
    return found


def stage_names(stages: Sequence[TrainedStage]) -> list[str]:
    """Their image sizes, of which no two are the same."""
    return [in_pixels(trained.stage.image_shape[:2]) for trained in stages]


def diagnostics_table(stages: Sequence[TrainedStage], found: Sequence[dict[str, float]]) -> str:
    """What was measured as lines for people, a column a stage; "-" where a stage has no such measure."""
    rows = list(dict.fromkeys(name for values in reversed(found) for name in values))
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{name:>12}" for name in stage_names(stages))]
    for row in rows:
        cells = [f"{values[row]:.4g}" if row in values else "-" for values in found]
        lines.append(f"{row:{width}}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def write_diagnostics(out: Path, stages: Sequence[TrainedStage], found: Sequence[dict[str, float]]) -> None:
    """``diagnostics.json``, with the step and the sampling settings of each stage, and ``diagnostics.png``."""
    rows: list[dict[str, Any]] = [
        {
            "image_size": trained.stage.config.image_size,
            "step": trained.step,
            "sampling": json.loads(trained.stage.config.sampling.to_json()),
            "measures": values,
        }
        for trained, values in zip(stages, found, strict=True)
    ]
    write_json(out / "diagnostics.json", rows)
    draw_cascade_diagnostics(dict(zip(stage_names(stages), found, strict=True)), out / "diagnostics.png")
