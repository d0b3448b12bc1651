"""The task of training a stage of the cascade: its text encoder, its objective and its previews."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from imagen_jax.config.schema import StageConfig
from imagen_jax.data.record import Source
from imagen_jax.datasets.captions import SourceCaptions, check_captions, training_captions
from imagen_jax.evaluation.low_res import Reconstruct
from imagen_jax.evaluation.previews import make_preview
from imagen_jax.evaluation.training_metrics import check_best, make_training_metrics, score_of
from imagen_jax.evaluation.validation import validation_score
from imagen_jax.parallel import multihost
from imagen_jax.pipelines.loading import TrainedStage
from imagen_jax.stages.adapter import learned_rows
from imagen_jax.stages.stage import Stage, build
from imagen_jax.stages.text import PromptEncoder, make_cached_encoder, make_encoder
from imagen_jax.text.embedding_cache import EmbeddingCache
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.learned_tokens import word_pattern
from imagen_jax.training.diffusion import DiffusionObjective
from imagen_jax.training.objective import Preview, SampleFigures
from imagen_jax.training.refinement import LowResVAE, RefinementNetworks, RefinementObjective, open_low_res_vae
from imagen_jax.training.run_files import EVALUATIONS
from imagen_jax.training.textual_inversion import InversionObjective, first_rows
from imagen_jax.training.vae import VAEObjective


def make_objective(
    stage: Stage, encoder: TextEncoder, vae: LowResVAE | None = None
) -> DiffusionObjective | VAEObjective:
    """Returns the objective of a stage, whose captions an encoder encodes: to denoise, or to be a VAE.

    Args:
        stage: the stage.
        encoder: its text encoder.
        vae: whose images it refines; None for a stage that does not.
    """
    if vae is not None:
        return RefinementObjective(stage, encoder, vae.stage)
    return VAEObjective(stage, encoder) if stage.is_vae else DiffusionObjective(stage, encoder)


class DiffusionTask:
    """Trains the stage that a config describes; a `Task`.

    Args:
        config: the stage.
        mesh: the devices.

    Raises:
        ConfigError: the text encoder, the embedding cache or the VAE of `diffusion.low_res_vae` cannot be opened.
    """

    def __init__(self, config: StageConfig, mesh: Mesh) -> None:
        encoder = make_cached_encoder(config.text) if config.text.cache else make_encoder(config.text)
        self._config = config
        if config.diffusion.null_text == "stored":
            encoder.null_text()  # an error before anything is built
        stage = build(config, encoder.width)
        self._vae = open_low_res_vae(config, encoder)
        self._trained_vae: TrainedStage | None = None
        self.objective = make_objective(stage, encoder, self._vae)
        if config.adapter.token:
            rows = first_rows(encoder, config.adapter)
            encoder = encoder.with_learned({config.adapter.token: rows})
            self.objective = InversionObjective(stage, encoder, rows)
        self._encoder = PromptEncoder(encoder, mesh, config.text)
        word = config.diffusion.never_dropped
        self._never_dropped = word_pattern([word]) if word else None

    def text_features(self, caption: str) -> dict[str, np.ndarray]:
        """Returns `tokens` [L], or embeddings [L, D] from the cache, and `mask` [L] of a caption.

        And `keep`, a bool, where there is a word whose captions are never dropped.
        """
        features = self._encoder.encoder.tokenize.as_features(caption)
        if self._never_dropped is not None:
            features["keep"] = np.array(self._never_dropped.search(caption) is not None)
        return features

    def check_sources(self, sources: Sequence[Source]) -> None:
        """Checks that there is text to learn, and that an embedding cache has the captions of all examples.

        Raises:
            ConfigError: there is no caption, and `data.allow_no_captions` is not set; or the cache lacks one.
        """
        if self._config.diffusion.cond_drop_prob < 1:
            check_captions(self._config.data, sources)
        cache = self._encoder.encoder.tokenize
        if isinstance(cache, EmbeddingCache):
            _check_captions(cache, training_captions(self._config, sources))

    def _encoder_of(self, params: Any) -> PromptEncoder:
        """Returns the text encoder, with the word that parameters have learned if they have one."""
        adapter = self._config.adapter
        if not adapter.token:
            return self._encoder
        return self._encoder.with_learned({adapter.token: learned_rows(params)})

    def load_networks(self, workdir: Path) -> Any:
        """Returns the text encoder's parameters, and those of the VAE whose images are refined if there is one."""
        if self._vae is None:
            return self._encoder.params
        self._trained_vae = self._vae.load(self._encoder.mesh, workdir)
        return RefinementNetworks(self._encoder.params, self._trained_vae.params)

    def record_networks(self, workdir: Path) -> None:
        """Names the weights of the VAE, if there is one."""
        if self._vae is not None and self._trained_vae is not None:
            self._vae.record(workdir, self._trained_vae)

    def _reconstruct(self) -> Reconstruct | None:
        """Returns what reconstructs real images; None for a stage that does not refine."""
        if self._vae is None:
            return None
        assert self._trained_vae is not None  # the networks are loaded first
        return Reconstruct(self._trained_vae, self._encoder.mesh)

    def make_preview(self) -> Callable[[Any], Preview]:
        """Returns a function that samples with parameters, see `evaluation.previews`, scored by `validation_score`."""
        preview = make_preview(self.objective.stage, self._encoder.mesh, self._reconstruct())

        def scored(params: Any) -> Preview:
            image, metrics = preview(params, self._encoder_of(params))
            return Preview(image, metrics, validation_score(metrics))

        return scored

    def make_evaluation(self, workdir: Path) -> Callable[[Any], SampleFigures] | None:
        """Returns a function that measures samples, see `evaluation.training_metrics`; None without metrics."""
        settings = self._config.evaluation
        if not settings.every:
            return None
        check_best(settings.best, settings.metrics.names)
        folder = workdir / EVALUATIONS
        measure = make_training_metrics(self.objective.stage, self._encoder.mesh, folder, self._reconstruct())

        def scored(params: Any) -> SampleFigures:
            rows = measure(params, self._encoder_of(params))
            return SampleFigures(rows, score_of(rows, settings.best) if settings.best else None)

        return scored


def _check_captions(cache: EmbeddingCache, captions: SourceCaptions) -> None:
    """Raises ConfigError if the cache lacks a caption of an example; each process checks a part."""
    part = range(jax.process_index(), len(captions), jax.process_count())
    hidden = not multihost.is_main_process()
    with tqdm(part, desc="captions in cache", unit=" examples", unit_scale=True, disable=hidden) as bar:
        cache.check_captions(caption for example in bar for caption in captions[example])
