"""What a measurement works with: stages trained once by the real training code, pictures drawn with them, figures kept.

Everything lies in one folder, and what is there already is not done again: a measurement that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from configs import shapes_base, shapes_eval, shapes_sr
from imagen_jax.config.load import load_config
from imagen_jax.config.schema import EvaluationConfig, StageConfig
from imagen_jax.data.dataset import first_examples
from imagen_jax.datasets.from_config import make_examples
from imagen_jax.errors import ConfigError
from imagen_jax.io.atomic import write_json
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.pipelines.loading import TrainedStage, load_stage
from imagen_jax.stages.checkpoints import Checkpoints, read_config
from imagen_jax.stages.sampling import StageSampler
from imagen_jax.training.loop import train

Figures = dict[str, Any]  # what JSON can hold
Item = TypeVar("Item")

CONFIGS = {"base": shapes_base.get_config, "sr": shapes_sr.get_config}
BATCH = 16  # of the previews: compiled once for both
SEED = 0
QUICK_STEPS = 12
QUICK_PICTURES = BATCH


@dataclasses.dataclass(frozen=True)
class Examples:
    """Captions with the pictures of their own scenes, uint8 [N, H, W, C]."""

    captions: list[str]
    images: np.ndarray


@dataclasses.dataclass(frozen=True)
class Workplace:
    """Where measurements are made.

    Attributes:
        out: the folder of all that is trained and found.
        stages: folders of a trained base and super-resolution stage, for what needs no training of its own.
        quick: whether to train, vary and draw next to nothing, to see that everything runs.
    """

    out: Path
    stages: Sequence[Path] = ()
    quick: bool = False

    def steps(self, steps: int) -> int:
        """Steps to train instead of so many."""
        return QUICK_STEPS if self.quick else steps

    def pictures(self, count: int) -> int:
        """Pictures to draw instead of so many, which are a multiple of BATCH."""
        return QUICK_PICTURES if self.quick else count

    def some(self, items: Sequence[Item]) -> Sequence[Item]:
        """The variations to try of those that there are."""
        return items[:2] if self.quick else items

    def config(self, kind: str, steps: int, changes: dict[str, Any]) -> StageConfig:
        """The config of the demo's stage "base" or "sr" for so many steps, changed: values by keys with dots."""
        lengths = ("training.steps", "optimizer.decay_steps", "training.preview_every")
        config = load_config(CONFIGS[kind]("tiny" if self.quick else ""))
        # few batches are prefetched: no more examples are made than a short run sees
        return config.with_changes({"data.prefetch": 64} | changes | dict.fromkeys(lengths, self.steps(steps)))

    def train(self, name: str, config: StageConfig) -> Path:
        """Trains a stage, unless that is done, in the folder ``name`` of ``out``; the folder."""
        folder = self.out / name
        checkpoints = Checkpoints(folder)
        done = checkpoints.latest_step == config.training.steps
        checkpoints.close()
        if not done:
            train(config, folder)
        return folder

    def remember(self, name: str, measure: Callable[[], Figures]) -> Figures:
        """What ``measure`` finds, or found before."""
        file = self.out / f"{name}.json"
        if file.exists():
            return json.loads(file.read_text())
        found = measure()
        write_json(file, found)
        return found

    def check_begun_alike(self) -> None:
        """Raises UsageError if the folder holds figures that were begun with other stages, or not as quickly."""
        begun_with = {"stages": [str(folder) for folder in self.stages], "quick": self.quick}
        before = self.remember("begun_with", lambda: begun_with)
        if before != begun_with:
            raise ConfigError(
                f"--out {str(self.out)!r} holds figures that were begun with {before}: give another folder"
            )


def machine() -> str:
    """What it is measured on, in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores ({names[0] if names else platform.machine()})"


def load(folder: Path, **sampling: Any) -> TrainedStage:
    """The stage of a folder, with changes to its sampling settings."""
    config = read_config(folder).with_changes({f"sampling.{key}": value for key, value in sampling.items()})
    return load_stage(folder, config, make_mesh({"data": -1, "fsdp": 1}))


def examples(split: str, size: int, count: int) -> Examples:
    """The first examples of a split, their pictures of a size."""
    config = load_config(shapes_eval.get_config(), schema=EvaluationConfig)
    images, captions = first_examples(make_examples(config.data, split, size, channels=3), count)
    return Examples(captions, images)


def draw(
    trained: TrainedStage,
    captions: Sequence[str],
    low_res: np.ndarray | None = None,
    guidance: Sequence[float] = (),
) -> list[np.ndarray]:
    """The pictures uint8 [N, H, W, C] of captions, a multiple of BATCH of them, once for each weight of guidance.

    Without weights once, with the config's. A super-resolution stage enlarges ``low_res``, uint8 [N, h, w, C].
    """
    mesh = make_mesh({"data": -1, "fsdp": 1})
    sampler = StageSampler(trained.stage, mesh, stage_index=int(trained.stage.is_super_resolution))

    def draw_batch(first: int, weight: float | None) -> np.ndarray:
        chosen = slice(first, first + BATCH)
        return sampler.sample(
            trained.params,
            trained.encoder_params,
            captions[chosen],
            SEED,
            first,
            None if low_res is None else low_res[chosen],
            None if weight is None else np.full(BATCH, weight, np.float32),
        )

    firsts = range(0, len(captions), BATCH)
    weights: Sequence[float | None] = guidance or (None,)
    return [np.concatenate([draw_batch(first, weight) for first in firsts]) for weight in weights]
