"""A stage's folder, whoever has written it: a training run (`workdir.py`) or `imagen publish` (`published.py`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from imagen_jax.config.schema import StageConfig
from imagen_jax.stages import workdir
from imagen_jax.stages.base import AdaptedWeights, has_base, open_base
from imagen_jax.stages.checkpoints import has_checkpoint
from imagen_jax.stages.published import PublishedWeights, is_published_stage, published_step, read_published_config
from imagen_jax.stages.weights import ITEMS, LATEST_EMA, SavedWeights, WeightsChoice


def read_config(folder: Path, log: Callable[[str], None] = workdir.logger.warning) -> StageConfig:
    """Returns the config of a stage's folder, see `workdir.read_config` and `read_published_config`."""
    return read_published_config(folder) if is_published_stage(folder) else workdir.read_config(folder, log)


def open_weights(folder: Path, choice: WeightsChoice = LATEST_EMA) -> SavedWeights | PublishedWeights | AdaptedWeights:
    """Returns weights of a stage's folder. Raises ConfigError and TrainingError as `SavedWeights` and `open_base`."""
    if is_published_stage(folder):
        return PublishedWeights(folder, choice.kind, choice.step)
    saved = SavedWeights(folder, ITEMS[choice.kind or "ema"], choice.step)
    return AdaptedWeights(saved, open_base(folder, open_weights)) if has_base(folder) else saved


def has_step(folder: Path, step: int) -> bool:
    """Returns whether a stage's folder has weights of a step; they may be damaged."""
    return published_step(folder) == step if is_published_stage(folder) else has_checkpoint(folder, step)
