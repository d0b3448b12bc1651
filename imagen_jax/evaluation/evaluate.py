"""Evaluates a cascade on captions: scores of a judge, metrics by features, and diagnostics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imagen_jax.config.load import load_config
from imagen_jax.config.schema import EvaluationConfig
from imagen_jax.datasets.caption_lists import read_caption_list
from imagen_jax.datasets.captions import FirstCaptions, SourceCaptions, warn_unreadable
from imagen_jax.datasets.registry import make_source
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.diagnostics import compute_diagnostics, format_diagnostics, write_diagnostics
from imagen_jax.evaluation.figures import CaptionsOrigin, Figure, format_figures
from imagen_jax.evaluation.image_sets import data_name
from imagen_jax.evaluation.judges import Judge, Scores, check_captions, format_scores, get_judge
from imagen_jax.evaluation.progress import EvaluationFolder, captions_digest, evaluation_manifest
from imagen_jax.evaluation.sample_metrics import SampleMetrics, scores_json
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
        metrics: figures by name, each with what it depends on; none without metrics.
        diagnostics: for each stage, its metrics by name.
        tables: scores and diagnostics as text.
        out: the folder with the result's files; None if none was given.
    """

    scores: Scores | None
    metrics: dict[str, Figure]
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
    save_images: bool = False,
) -> EvaluationResult | None:
    """Samples images for the captions of a data set, and computes their scores and diagnostics.

    Images are sampled once, scored and measured batch by batch, and not kept. With `out`, the state is written after
    each batch, and that of metrics, whose files are large, every now and then; a call with the same stages, settings
    and config continues after the last state, and the results are those of an unbroken call. In multi-host runs all
    processes sample and run the networks of metrics, and the main one scores.

    Args:
        pipeline: the cascade.
        config: the captions, their number, the judge and the metrics, or the path of their file, such as
            configs/shapes_eval.py.
        out: the folder to write to: `diagnostics.json` and `diagnostics.png`; with a judge or metrics `scores.json`;
            with a judge `correct.png` and `incorrect.png`, and without one `samples.png`.
        overwrite: whether results of another evaluation in `out` are removed.
        save_images: whether all images are kept, in `out`/evaluated_images, with their captions.

    Returns:
        Scores and diagnostics, in the main process; None in the others.

    Raises:
        ConfigError: the config is not valid, the judge does not understand the captions, there are too few captions,
            weights or the reference of metrics are missing or of another network, or `out` has results of another
            evaluation.
    """
    config = load_config(config, schema=EvaluationConfig)
    judge = check_judge(config)
    if save_images and out is None:
        raise ConfigError("save_images keeps images in the folder of the results: give out")
    source, captions, origin = open_captions(config, pipeline)
    if judge:
        check_captions(config.judge, captions)
    devices.log_devices("evaluating")
    _ = pipeline.draft  # loaded by all processes, before the main one describes it
    out = None if out is None else as_path(out)
    metrics = SampleMetrics(config, pipeline.image_size, pipeline.stages[-1].stage.config.channels, origin, out)
    folder, state = None, EvaluationState(len(pipeline.stages), judge)
    if out is not None and multihost.is_main_process():
        more = metrics.manifest() | ({"save_images": True} if save_images else {})
        folder = EvaluationFolder(out, evaluation_manifest(pipeline, config, captions, more), overwrite)
        metrics.load()
        state = folder.load(judge, metrics.images) or state
        if metrics.images != state.images:
            metrics.restart()
    metrics.measure_reference()
    request = SampleRequest(Texts(captions), config.seed, config.batch_size)
    _score(pipeline, request, state, metrics, folder, save_images)
    if multihost.is_main_process():
        warn_unreadable(source)
    # other processes have not seen the images: their own share of the work is the validation loss alone
    diagnostics = compute_diagnostics(pipeline, state.stages, config)
    if not multihost.is_main_process():
        return None
    scores, figures = None if state.counts is None else state.counts.result(), metrics.result()
    tables = [format_diagnostics(pipeline.stages, diagnostics)]
    if scores is not None:
        tables.append(format_scores(scores))
    if figures:
        tables.append(format_figures(figures))
    tables.append(f"{config.num_samples} captions of {config.captions or f'the {config.data.split} split'}")
    if folder is not None and out is not None:
        write_diagnostics(out, pipeline.stages, diagnostics)
        if scores is None:
            _save_grid(folder, captions, state.correct, out / "samples.png")
            tables.append(f"samples: {out / 'samples.png'}; diagnostics: {out / 'diagnostics.json'}")
        else:
            _save_grid(folder, captions, state.correct, out / "correct.png")
            _save_grid(folder, captions, state.incorrect, out / "incorrect.png")
        if scores is not None or figures:
            write_json(out / "scores.json", scores_json(scores, figures))
            tables.append(f"scores: {out / 'scores.json'}")
        if save_images:
            folder.save_captions(captions)
        flush_or_warn()
    return EvaluationResult(scores, figures, diagnostics, "\n".join(tables), out)


def open_captions(
    config: EvaluationConfig, pipeline: ImagenPipeline
) -> tuple[SourceCaptions, Sequence[str], CaptionsOrigin]:
    """Returns the captions of the data set, those to sample, and where these are from. Raises ConfigError."""
    source = SourceCaptions([make_source(config.data, config.data.split, pipeline.image_size)])
    if config.captions:
        given = read_caption_list(config.captions)
        return source, given.first(config.num_samples), CaptionsOrigin(given.name, given.checksum)
    captions = FirstCaptions(source, config.num_samples)
    return source, captions, CaptionsOrigin(data_name(config.data, config.data.split), captions_digest(captions)[:32])


def _score(
    pipeline: ImagenPipeline,
    request: SampleRequest,
    state: EvaluationState,
    metrics: SampleMetrics,
    folder: EvaluationFolder | None,
    save_images: bool,
) -> None:
    """Samples the images that the state does not have, measures them, and adds them to it in the main process."""
    captions = request.texts.prompts
    pending = multihost.broadcast_from_main(np.arange(len(captions)) >= state.images)
    for first, by_stage in pipeline.iter_batches(request, pending):
        images, texts = by_stage[-1], captions[first : first + len(by_stage[-1])]
        metrics.update(first, images, texts)
        if not multihost.is_main_process():
            continue
        state.update(first, by_stage, texts)
        if folder is not None:
            if save_images:
                folder.save_samples(first, images)
            # first the record: states of metrics without one of as many images could not be continued
            folder.save(state, first, images)
            metrics.save()


def check_judge(config: EvaluationConfig) -> Judge | None:
    """Returns a config's judge, or None if it has none. Can be called before any stage is loaded."""
    return get_judge(config.judge) if config.judge else None


def _save_grid(folder: EvaluationFolder, captions: Sequence[str], indices: Sequence[int], path: Path) -> None:
    """Writes a grid of images with their captions; nothing if there are none."""
    if indices:
        save_png(image_grid(folder.images(indices), [captions[i] for i in indices], columns=8), path)
