"""Diagnostics of a cascade: for each stage, the metrics of its samples and its validation loss or bound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.config.load import to_json
from imagen_jax.config.schema import EvaluationConfig
from imagen_jax.data.dataset import first_examples
from imagen_jax.datasets.from_config import make_examples
from imagen_jax.evaluation.cascade_metrics import StageMetrics, with_real
from imagen_jax.evaluation.low_res import Reconstruct
from imagen_jax.evaluation.validation import make_validation
from imagen_jax.images.array import format_height_width
from imagen_jax.images.plots import plot_cascade_diagnostics
from imagen_jax.io.atomic import write_json
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.loading import TrainedStage
from imagen_jax.pipelines.texts import required

# Most real images for validation losses and saturation: enough for the means.
MAX_REAL_IMAGES = 128


def compute_diagnostics(
    pipeline: ImagenPipeline, samples: Sequence[StageMetrics], config: EvaluationConfig
) -> list[dict[str, float]]:
    """Returns the metrics of each stage by name, those of `compute_metrics` and `make_validation`.

    All processes take part in the validation loss; one without samples gets that alone.

    Args:
        pipeline: the cascade.
        samples: the sums over the samples of each stage.
        config: with the source and split of real images, and how many of them are at once in the validation loss.
    """
    metrics = []
    for index, (trained, sums) in enumerate(zip(pipeline.stages, samples, strict=True)):
        data, stage_config = config.data, trained.stage.config
        examples = make_examples(data, data.split, stage_config.image_hw, stage_config.channels)
        real, captions = first_examples(examples, min(MAX_REAL_IMAGES, config.num_samples))
        validate = make_validation(trained.stage, pipeline.mesh, config.batch_size)
        refined = _refined(pipeline, index, real, captions, config.batch_size)
        measured = validate(trained.params, real, pipeline.encode_prompt(captions, index), refined)
        sampled = with_real(sums.result(), real) if sums.images else {}
        metrics.append({**sampled, **measured})
    return metrics


def _refined(
    pipeline: ImagenPipeline, index: int, real: np.ndarray, captions: Sequence[str], batch_size: int
) -> np.ndarray | None:
    """Returns what a stage sees of real images that refines those of the VAE before it; None for other stages."""
    before, encoder = pipeline.stages[index - 1], pipeline.text_encoders[index - 1]
    if not (pipeline.stages[index].stage.config.refines and before.stage.is_vae):
        return None
    reconstruct = Reconstruct(before, pipeline.mesh)
    return np.concatenate(
        [
            reconstruct(
                real[start : start + batch_size], required(encoder), captions[start : start + batch_size], start
            )
            for start in range(0, len(real), batch_size)
        ]
    )


def _stage_names(stages: Sequence[TrainedStage]) -> list[str]:
    """Returns the image sizes of the stages; one that refines images has the size of the stage before it."""
    return [
        format_height_width(trained.stage.image_shape[:2]) + (" refined" if trained.stage.config.refines else "")
        for trained in stages
    ]


def format_diagnostics(stages: Sequence[TrainedStage], metrics: Sequence[dict[str, float]]) -> str:
    """Returns a table with a column per stage; "-" where a stage does not have a metric."""
    rows = list(dict.fromkeys(name for values in reversed(metrics) for name in values))
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{name:>12}" for name in _stage_names(stages))]
    for row in rows:
        cells = [f"{values[row]:.4g}" if row in values else "-" for values in metrics]
        lines.append(f"{row:{width}}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def write_diagnostics(out: Path, stages: Sequence[TrainedStage], metrics: Sequence[dict[str, float]]) -> None:
    """Writes `diagnostics.json`, with the step and the sampling settings of each stage, and `diagnostics.png`."""
    rows: list[dict[str, Any]] = [
        {
            "image_size": trained.stage.config.image_size,
            "step": trained.step,
            "sampling": to_json(trained.stage.config.sampling),
            "metrics": values,
        }
        for trained, values in zip(stages, metrics, strict=True)
    ]
    write_json(out / "diagnostics.json", rows)
    plot_cascade_diagnostics(dict(zip(_stage_names(stages), metrics, strict=True)), out / "diagnostics.png")
