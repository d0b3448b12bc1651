"""Trained stages, loaded from their folders and checked to chain."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from imagen_jax.config.load import to_json
from imagen_jax.config.schema import StageConfig, TextConfig
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import format_size
from imagen_jax.parallel.sharding import with_shardings
from imagen_jax.stages.published import config_digest
from imagen_jax.stages.stage import Stage, build, codec_error
from imagen_jax.stages.stage_folder import open_weights, read_config
from imagen_jax.stages.text import PromptEncoder, make_cached_encoder, make_encoder
from imagen_jax.stages.weights import LATEST_EMA, WeightsChoice
from imagen_jax.text.learned_tokens import Words


@dataclasses.dataclass(frozen=True)
class TrainedStage:
    """A stage with the weights to sample from.

    Attributes:
        stage: what its config describes.
        params: weights of its network.
        step: the training step of the weights.
        folder: where the stage was loaded from.
        weights: "ema" or "raw".
        checksum: identifies the checkpoint, see `SavedWeights`; "" without one.
        published_config: identifies the config that a published stage was trained with, whose own names no files of the
            machine that trained it; "" for a stage of a run.
        learned: words that its run has learned, which the text encoder has to know.
    """

    stage: Stage
    params: Any
    step: int
    folder: Path = Path()
    weights: str = "ema"
    checksum: str = ""
    published_config: str = ""
    learned: Words = dataclasses.field(default_factory=dict)

    @property
    def config_digest(self) -> str:
        """What identifies the config that the weights were trained with, see `published.config_digest`."""
        return self.published_config or config_digest(to_json(self.stage.config))


def check_chain(configs: Sequence[StageConfig]) -> None:
    """Raises ConfigError unless the first stage is a base and each other starts from the size of the one before."""
    if not configs:
        raise ConfigError("no stages given: name their folders, the base first")
    if any(config.is_codec for config in configs):
        raise codec_error()
    first = configs[0]
    if first.is_super_resolution:
        low, size = first.low_res_hw, first.image_hw
        raise ConfigError(
            f"the first stage is a super-resolution stage ({format_size(low)} to {format_size(size)}): "
            f"put a base stage of {low[0]}×{low[1]} before it"
        )
    for before, after in itertools.pairwise(configs):
        shape, needed = (*before.image_hw, before.channels), (*after.low_res_hw, after.channels)
        if shape != needed:
            given, expected = ("×".join(map(str, shape)) for shape in (shape, needed))
            next_one = f"one that starts from {expected}" if after.is_super_resolution else "a base stage"
            raise ConfigError(f"the stages do not chain: one that samples {given} is followed by {next_one}")


def read_chain(workdirs: Sequence[Path], changes: Sequence[Mapping[str, Any]] | None = None) -> list[StageConfig]:
    """Returns the configs of some stage folders, base first, with `changes` to the sampling settings of each.

    No weight is read. Raises ConfigError as `check_chain`.
    """
    configs = [read_config(workdir) for workdir in workdirs]
    check_chain(configs)
    return [
        config.with_changes({f"sampling.{key}": value for key, value in change.items()})
        for config, change in zip(configs, changes or [{}] * len(workdirs), strict=True)
    ]


def read_choices(weights: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None, stages: int) -> list[WeightsChoice]:
    """Returns which weights to load for each stage.

    Args:
        weights: keys of a `WeightsChoice`, for all stages or for each.
        stages: number of stages.

    Raises:
        ConfigError: a key or value is not known, or there are choices for another number of stages.
    """
    by_stage = [weights or {}] * stages if weights is None or isinstance(weights, Mapping) else list(weights)
    if len(by_stage) != stages:
        raise ConfigError(f"weights has {len(by_stage)} choices for {stages} stages: give one for all, or one for each")
    return [WeightsChoice.from_mapping(choice) for choice in by_stage]


def load_stage(
    workdir: Path,
    config: StageConfig,
    mesh: Mesh,
    text_width: int | None = None,
    weights: WeightsChoice = LATEST_EMA,
) -> TrainedStage:
    """Loads a stage with weights of its folder, in which a run may train; those of an adapter are in its kernels.

    Args:
        workdir: the folder of a training run, or of a published stage.
        config: the folder's config, perhaps with other sampling settings.
        mesh: where the weights go.
        text_width: D of the text encoder's embeddings; by default that which the weights were trained with.
        weights: which ones; by default the EMA of the newest checkpoint, or those that were published.

    Raises:
        ConfigError: the folder has no such checkpoint, or one of another model.
        TrainingError: every checkpoint is damaged.
    """
    saved = open_weights(workdir, weights)
    stage = build(config, saved.text_width if text_width is None else text_width)
    params = saved.load(with_shardings(jax.eval_shape(stage.init, jax.random.key(0)), mesh))
    stage, params, learned = stage.without_adapter(params)
    return TrainedStage(stage, params, saved.step, workdir, saved.kind, saved.checksum, saved.published_config, learned)


def make_encoders(configs: Sequence[StageConfig], mesh: Mesh, cache: str | Path | None = None) -> list[PromptEncoder]:
    """Returns the text encoder of each stage, one object for those that share it; weights are loaded at first use.

    Args:
        configs: of the stages.
        mesh: where the weights go.
        cache: a folder of embeddings; prompts in it are looked up.

    Raises:
        ConfigError: an encoder cannot be opened, or the cache is not one of its embeddings.
    """
    # a fingerprint that one stage has is checked for all that name the same encoder and have none
    known = {_encoder_key(config.text): config.text.fingerprint for config in configs if config.text.fingerprint}
    made: dict[TextConfig, PromptEncoder] = {}
    encoders = []
    for text in (config.text for config in configs):
        fingerprint = text.fingerprint or known.get(_encoder_key(text), "")
        text = text.with_changes(fingerprint=fingerprint, cache="")
        if text not in made:
            made[text] = _make_encoder(text, mesh, cache)
        encoders.append(made[text])
    return encoders


def learn(
    encoders: Sequence[PromptEncoder | None], words_of: Callable[[PromptEncoder], Words]
) -> list[PromptEncoder | None]:
    """Returns text encoders with the words that a function has for each, one object for those that were one."""
    made: dict[PromptEncoder, PromptEncoder] = {}
    for encoder in encoders:
        if encoder is not None and encoder not in made:
            words = words_of(encoder)
            made[encoder] = encoder.with_learned(words) if words else encoder
    return [encoder and made[encoder] for encoder in encoders]


def learned_words(stages: Sequence[TrainedStage], encoder: PromptEncoder) -> Words:
    """Returns the words that the runs of stages have learned, as far as they have the width of a text encoder."""
    words = {word: rows for trained in stages for word, rows in trained.learned.items()}
    return {word: rows for word, rows in words.items() if rows.shape[1] == encoder.width}


def _encoder_key(text: TextConfig) -> tuple[str, int, str]:
    return text.model, text.length, text.dtype


def _make_encoder(config: TextConfig, mesh: Mesh, cache: str | Path | None) -> PromptEncoder:
    if cache is None:
        return PromptEncoder(make_encoder(config), mesh, config)
    try:
        others = PromptEncoder(make_encoder(config), mesh, config)
    except ConfigError:
        others = None  # prompts that the cache lacks are then refused
    cached = make_cached_encoder(config.with_changes(cache=str(cache)))
    return PromptEncoder(cached, mesh, others=others)
