"""Evaluates a cascade on the captions of a data set: scores of a judge, and diagnostics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imagen_jax.config.load import load_config
from imagen_jax.config.schema import EvaluationConfig
from imagen_jax.data.dataset import first_caption
from imagen_jax.datasets.captions import SourceCaptions
from imagen_jax.datasets.registry import make_source
from imagen_jax.evaluation.diagnostics import compute_diagnostics, format_diagnostics, write_diagnostics
from imagen_jax.evaluation.judges import Judge, Scores, check_captions, format_scores, get_judge
from imagen_jax.images.grid import image_grid, save_png
from imagen_jax.io.atomic import write_json
from imagen_jax.io.paths import as_path
from imagen_jax.parallel import multihost
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.request import SampleRequest
from imagen_jax.pipelines.texts import Texts

MAX_GRID_IMAGES = 32


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """The result of `evaluate`.

    Attributes:
        scores: for each row, `correct`, `total`, `rate` and its 95% interval; None without a judge.
        diagnostics: for each stage, its metrics by name.
        tables: scores and diagnostics as text.
        out: the folder with the result's files; None if none was given.
    """

    scores: Scores | None
    diagnostics: list[dict[str, float]]
    tables: str
    out: Path | None

    def summary(self) -> str:
        """Returns the tables."""
        return self.tables


def evaluate(
    pipeline: ImagenPipeline, config: EvaluationConfig | str | Path, out: str | Path | None = None
) -> EvaluationResult | None:
    """Samples images for the captions of a data set, and computes their scores and diagnostics.

    Args:
        pipeline: the cascade.
        config: the captions, their number and the judge, or the path of their file, such as configs/shapes_eval.py.
        out: the folder to write to: `diagnostics.json` and `diagnostics.png`, and either `scores.json`, `correct.png`
            and `incorrect.png`, or without a judge `samples.png`.

    Returns:
        Scores and diagnostics, in the main process; None in the others.

    Raises:
        ConfigError: the config is not valid, or the judge does not understand the captions.
    """
    config = load_config(config, schema=EvaluationConfig)
    judge = check_judge(config)
    source = SourceCaptions([make_source(config.data, config.data.split, pipeline.image_size)])
    captions = [first_caption(source[i % len(source)]) for i in range(config.num_samples)]
    if judge:
        check_captions(config.judge, captions)
    if out is not None:
        out = as_path(out)

    images = pipeline.sample_all(SampleRequest(Texts(captions), config.seed, config.batch_size))
    diagnostics = compute_diagnostics(pipeline, images, config.data, config.batch_size)
    if not multihost.is_main_process():
        return None
    scores, correct = judge(images[-1], captions) if judge else (None, np.ones(len(captions), bool))
    tables = [format_diagnostics(pipeline.stages, diagnostics)]
    if scores is not None:
        tables.append(format_scores(scores))
    tables.append(f"{config.num_samples} captions of the {config.data.split} split")
    if out is not None:
        write_diagnostics(out, pipeline.stages, diagnostics)
        if scores is None:
            _save_grid(images[-1], captions, np.flatnonzero(correct), out / "samples.png")
            tables.append(f"samples: {out / 'samples.png'}; metrics: {out / 'diagnostics.json'}")
        else:
            write_json(out / "scores.json", scores)
            _save_grid(images[-1], captions, np.flatnonzero(correct), out / "correct.png")
            _save_grid(images[-1], captions, np.flatnonzero(~correct), out / "incorrect.png")
            tables.append(f"scores: {out / 'scores.json'}")
    return EvaluationResult(scores, diagnostics, "\n".join(tables), out)


def check_judge(config: EvaluationConfig) -> Judge | None:
    """Returns a config's judge, or None if it has none. Can be called before any stage is loaded."""
    return get_judge(config.judge) if config.judge else None


def _save_grid(images: np.ndarray, captions: Sequence[str], indices: np.ndarray, path: Path) -> None:
    """Writes a grid of the first selected images with their captions; nothing if none is selected."""
    shown = indices[:MAX_GRID_IMAGES]
    if len(shown):
        save_png(image_grid(images[shown], [captions[i] for i in shown], columns=8), path)
