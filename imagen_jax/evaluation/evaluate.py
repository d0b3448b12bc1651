"""Evaluates a cascade on the captions of a data set: scores of a judge, and diagnostics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imagen_jax.config.load import load_config
from imagen_jax.config.schema import EvaluationConfig
from imagen_jax.datasets.captions import FirstCaptions, SourceCaptions, warn_unreadable
from imagen_jax.datasets.registry import make_source
from imagen_jax.evaluation.diagnostics import compute_diagnostics, format_diagnostics, write_diagnostics
from imagen_jax.evaluation.judges import Judge, Scores, check_captions, format_scores, get_judge
from imagen_jax.evaluation.progress import EvaluationFolder, evaluation_manifest
from imagen_jax.evaluation.state import EvaluationState
from imagen_jax.images.grid import image_grid, save_png
from imagen_jax.io.atomic import write_json
from imagen_jax.io.paths import as_path
from imagen_jax.io.uploads import flush_or_warn
from imagen_jax.parallel import devices, multihost
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.request import SampleRequest
from imagen_jax.pipelines.texts import Texts


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
    pipeline: ImagenPipeline,
    config: EvaluationConfig | str | Path,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
) -> EvaluationResult | None:
    """Samples images for the captions of a data set, and computes their scores and diagnostics.

    Images are scored batch by batch and not kept. With `out`, the state is written after each batch, and a call with
    the same stages, settings and config continues after the last one; the results are those of an unbroken call. In
    multi-host runs all processes sample, and the main one scores.

    Args:
        pipeline: the cascade.
        config: the captions, their number and the judge, or the path of their file, such as configs/shapes_eval.py.
        out: the folder to write to: `diagnostics.json` and `diagnostics.png`, and either `scores.json`, `correct.png`
            and `incorrect.png`, or without a judge `samples.png`.
        overwrite: whether results of another evaluation in `out` are removed.

    Returns:
        Scores and diagnostics, in the main process; None in the others.

    Raises:
        ConfigError: the config is not valid, the judge does not understand the captions, or `out` has results of
            another evaluation.
    """
    config = load_config(config, schema=EvaluationConfig)
    judge = check_judge(config)
    source = SourceCaptions([make_source(config.data, config.data.split, pipeline.image_size)])
    captions = FirstCaptions(source, config.num_samples)
    if judge:
        check_captions(config.judge, captions)
    folder, state = None, EvaluationState(len(pipeline.stages), judge)
    if out is not None:
        out = as_path(out)
        if multihost.is_main_process():
            folder = EvaluationFolder(out, evaluation_manifest(pipeline.stages, config, captions), overwrite)
            state = folder.load(judge) or state
    devices.log_devices("evaluating")
    _score(pipeline, SampleRequest(Texts(captions), config.seed, config.batch_size), state, folder)
    if multihost.is_main_process():
        warn_unreadable(source)
    # other processes have not seen the images: their own share of the work is the validation loss alone
    diagnostics = compute_diagnostics(pipeline, state.stages, config)
    if not multihost.is_main_process():
        return None
    scores = None if state.counts is None else state.counts.result()
    tables = [format_diagnostics(pipeline.stages, diagnostics)]
    if scores is not None:
        tables.append(format_scores(scores))
    tables.append(f"{config.num_samples} captions of the {config.data.split} split")
    if folder is not None and out is not None:
        write_diagnostics(out, pipeline.stages, diagnostics)
        if scores is None:
            _save_grid(folder, captions, state.correct, out / "samples.png")
            tables.append(f"samples: {out / 'samples.png'}; metrics: {out / 'diagnostics.json'}")
        else:
            write_json(out / "scores.json", scores)
            _save_grid(folder, captions, state.correct, out / "correct.png")
            _save_grid(folder, captions, state.incorrect, out / "incorrect.png")
            tables.append(f"scores: {out / 'scores.json'}")
        flush_or_warn()
    return EvaluationResult(scores, diagnostics, "\n".join(tables), out)


def _score(
    pipeline: ImagenPipeline, request: SampleRequest, state: EvaluationState, folder: EvaluationFolder | None
) -> None:
    """Samples the images that the state does not have, and adds them to it in the main process."""
    captions = request.texts.prompts
    pending = multihost.broadcast_from_main(np.arange(len(captions)) >= state.images)
    for first, by_stage in pipeline.iter_batches(request, pending):
        if multihost.is_main_process():
            state.update(first, by_stage, captions[first : first + len(by_stage[-1])])
            if folder is not None:
                folder.save(state, first, by_stage[-1])


def check_judge(config: EvaluationConfig) -> Judge | None:
    """Returns a config's judge, or None if it has none. Can be called before any stage is loaded."""
    return get_judge(config.judge) if config.judge else None


def _save_grid(folder: EvaluationFolder, captions: Sequence[str], indices: Sequence[int], path: Path) -> None:
    """Writes a grid of images with their captions; nothing if there are none."""
    if indices:
        save_png(image_grid(folder.images(indices), [captions[i] for i in indices], columns=8), path)
