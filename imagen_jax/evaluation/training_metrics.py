"""Metrics of samples of one stage during its training, against real images of the validation split."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from imagen_jax.data.dataset import first_caption
from imagen_jax.datasets.from_config import make_examples
from imagen_jax.errors import ConfigError, unknown_name_error
from imagen_jax.evaluation.figures import LOWER_IS_BETTER
from imagen_jax.evaluation.image_sets import without_alpha
from imagen_jax.evaluation.low_res import Reconstruct, downsample
from imagen_jax.evaluation.metric_set import METRICS, MetricSet, Reference
from imagen_jax.evaluation.references import DataReference, measure_reference, open_reference
from imagen_jax.parallel import multihost
from imagen_jax.parallel.batching import pad_batch
from imagen_jax.stages.samplers import make_stage_sampler
from imagen_jax.stages.stage import Stage
from imagen_jax.stages.stage_sampler import NoiseSource, make_request
from imagen_jax.stages.text import PromptEncoder

SEED = 0
# the names of figures where a metric has another one, or several
_FIGURES = {
    "clip": ("clip_score",),
    "precision_recall": ("precision", "recall"),
    "precision_recall_lite0": ("precision_lite0", "recall_lite0"),
}

Rows = dict[str, dict[str, Any]]


def make_training_metrics(
    stage: Stage, mesh: Mesh, folder: Path, reconstruct: Reconstruct | None = None
) -> Callable[[Any, PromptEncoder], Rows]:
    """Returns a function `(params, encoder) -> figures as JSON by name`, which all processes call.

    It samples the captions of the validation split, from the first on, with the settings of the stage; a
    super-resolution stage enlarges the downsampled images of the data set. The noise of a sample is a function of its
    index alone, so that figures of different steps, meshes and runs can be compared. The reference is measured at the
    first call, and kept in a folder.

    Args:
        stage: the stage, whose config has the metrics.
        mesh: the devices that sample.
        folder: where the states of the reference are kept.
        reconstruct: of a stage that refines images of a VAE: makes those that it refines of real ones.

    Raises:
        ConfigError: weights are missing, the reference is not one, or there are too few images.
    """
    config, settings = stage.config, stage.config.evaluation
    metrics = MetricSet.load(settings.metrics)
    metrics.stream(settings.num_samples)  # an error before anything is trained
    split = config.data.validation_split
    examples = make_examples(config.data, split, config.image_hw, config.channels)
    sampler, opened = make_stage_sampler(stage, mesh), None
    if metrics.needs_reference:
        data = DataReference(config.data, split, config.image_hw, config.channels, settings.num_samples)
        opened = open_reference(metrics, settings.metrics, data)

    @functools.cache
    def reference() -> Reference | None:
        if opened is None or isinstance(opened, Reference):
            return opened
        return measure_reference(metrics, opened, folder)

    def sample(params: Any, encoder: PromptEncoder, first: int, size: int) -> tuple[np.ndarray, list[str]]:
        """Returns `size` samples from the index `first` on, and their captions."""
        batch = [examples[index % len(examples)] for index in range(first, first + size)]
        captions, small = [first_caption(example.captions) for example in batch], None
        if stage.is_super_resolution:
            real = np.stack([examples.fit(example.image) for example in batch])
            small = downsample(stage, real) if reconstruct is None else reconstruct(real, encoder, captions, first)
            small = pad_batch(small, settings.batch_size)
        # all batches have one size: the sampler is compiled once
        padded = pad_batch(captions, settings.batch_size, "")
        request = make_request(stage, encoder, padded, NoiseSource(SEED, first), small)
        return sampler.sample_uint(params, request, size), captions

    def measure(params: Any, encoder: PromptEncoder) -> Rows:
        real, stream = reference(), metrics.stream(settings.num_samples)
        for first in range(0, settings.num_samples, settings.batch_size):
            size = min(settings.batch_size, settings.num_samples - first)
            images, captions = sample(params, encoder, first, size)
            stream.update(first, without_alpha(images), captions)
        rows = {}
        if multihost.is_main_process():  # the others may not have the states of the reference, which are in a file
            rows = {name: figure.to_json() for name, figure in metrics.result(stream, real).items()}
        return json.loads(multihost.all_gather_strings(json.dumps(rows))[0])

    return measure


def check_best(best: str, names: tuple[str, ...]) -> None:
    """Raises ConfigError unless a name is that of a figure of some metrics; empty is none."""
    figures = [figure for name in names for figure in _FIGURES.get(name, (name,)) if name in METRICS]
    if best and best not in figures:
        raise unknown_name_error("evaluation.best", best, figures)


def score_of(rows: Rows, best: str) -> float:
    """Returns what checkpoints are compared by, lower is better: a figure, or its negative if more of it is better.

    Raises:
        ConfigError: there is no such figure.
    """
    if best not in rows:
        raise ConfigError(f"evaluation.best {best!r} has not been measured: choose one of {', '.join(rows)}")
    return rows[best]["value"] if best in LOWER_IS_BETTER else -rows[best]["value"]
