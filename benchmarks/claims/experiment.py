"""Trained stages, samples and cached figures for the measurements.

Everything is kept in one folder and nothing is computed twice, so that an interrupted measurement resumes.
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
from imagen_jax.stages.checkpoints import Checkpoints
from imagen_jax.stages.stage_folder import read_config
from imagen_jax.stages.stage_sampler import NoiseSource, StageSampler, make_request
from imagen_jax.stages.text import PromptEncoder, make_encoder
from imagen_jax.training.loop import train

Figures = dict[str, Any]  # serializable as JSON
Item = TypeVar("Item")

CONFIGS = {"base": shapes_base.get_config, "sr": shapes_sr.get_config}
BATCH = 16  # the batch size of previews: compiled once for both
SEED = 0
QUICK_STEPS = 12
QUICK_IMAGES = BATCH


@dataclasses.dataclass(frozen=True)
class Examples:
    """Captions with the true images of their scenes, uint8 [N, H, W, C]."""

    captions: list[str]
    images: np.ndarray


@dataclasses.dataclass(frozen=True)
class Workspace:
    """The folder and the settings of measurements.

    Attributes:
        out: the folder of trained stages and figures.
        stages: folders of a trained base and super-resolution stage, for measurements without training.
        quick: whether to train, vary and sample very little, to check that everything runs.
    """

    out: Path
    stages: Sequence[Path] = ()
    quick: bool = False

    def steps(self, steps: int) -> int:
        """Returns the steps to train: fewer with `quick`."""
        return QUICK_STEPS if self.quick else steps

    def num_images(self, count: int) -> int:
        """Returns the number of images to sample, a multiple of BATCH: fewer with `quick`."""
        return QUICK_IMAGES if self.quick else count

    def select(self, items: Sequence[Item]) -> Sequence[Item]:
        """Returns the variations to measure: the first two with `quick`."""
        return items[:2] if self.quick else items

    def config(self, kind: str, steps: int, changes: dict[str, Any]) -> StageConfig:
        """Returns the config of the demo's stage "base" or "sr" for a number of steps, with changes by dotted keys."""
        lengths = ("training.steps", "training.preview_every")
        config: StageConfig = load_config(CONFIGS[kind]("tiny" if self.quick else ""))
        # few batches are prefetched: no more examples are made than a short run sees
        return config.with_changes({"data.prefetch": 64} | changes | dict.fromkeys(lengths, self.steps(steps)))

    def train(self, name: str, config: StageConfig) -> Path:
        """Trains a stage in a subfolder of `out` unless it is trained already; returns the folder."""
        folder = self.out / name
        checkpoints = Checkpoints(folder)
        done = checkpoints.latest_step == config.training.steps
        checkpoints.close()
        if not done:
            train(config, folder)
        return folder

    def cached(self, name: str, measure: Callable[[], Figures]) -> Figures:
        """Returns the figures of `measure`, which is called at most once per name."""
        file = self.out / f"{name}.json"
        if file.exists():
            return json.loads(file.read_text())
        figures = measure()
        write_json(file, figures)
        return figures

    def check_same_settings(self) -> None:
        """Raises ConfigError if the folder has figures of other stages, or of another `quick`."""
        settings = {"stages": [str(folder) for folder in self.stages], "quick": self.quick}
        before = self.cached("settings", lambda: settings)
        if before != settings:
            raise ConfigError(
                f"--out {str(self.out)!r} has figures that were measured with {before}: give another folder"
            )


def describe_machine() -> str:
    """Returns the number and the name of the machine's cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores ({names[0] if names else platform.machine()})"


def load(folder: Path, **sampling: Any) -> TrainedStage:
    """Returns the stage of a folder, with changes of its sampling settings."""
    config = read_config(folder).with_changes({f"sampling.{key}": value for key, value in sampling.items()})
    return load_stage(folder, config, make_mesh({"data": -1, "fsdp": 1}))


def examples(split: str, size: int, count: int) -> Examples:
    """Returns the first examples of a split, with images of a size."""
    config = load_config(shapes_eval.get_config(), schema=EvaluationConfig)
    images, captions = first_examples(make_examples(config.data, split, size, channels=3), count)
    return Examples(captions, images)


def sample_images(
    trained: TrainedStage,
    captions: Sequence[str],
    low_res: np.ndarray | None = None,
    guidance_scales: Sequence[float] = (),
) -> list[np.ndarray]:
    """Samples images for captions, once for each guidance scale.

    Args:
        trained: the stage.
        captions: a multiple of BATCH.
        low_res: low-resolution images uint8 [N, h, w, C] of a super-resolution stage.
        guidance_scales: the config's if there are none.

    Returns:
        For each scale, images uint8 [N, H, W, C].
    """
    mesh = make_mesh({"data": -1, "fsdp": 1})
    sampler, encoder = StageSampler(trained.stage, mesh), PromptEncoder(make_encoder(trained.stage.config.text), mesh)
    stage_index = int(trained.stage.is_super_resolution)

    def sample_batch(first: int, scale: float | None) -> np.ndarray:
        rows = slice(first, first + BATCH)
        request = make_request(
            trained.stage,
            encoder,
            captions[rows],
            NoiseSource(SEED, first, stage_index),
            None if low_res is None else low_res[rows],
            None if scale is None else np.full(BATCH, scale, np.float32),
        )
        return sampler.sample_uint(trained.params, request, len(captions[rows]))

    firsts = range(0, len(captions), BATCH)
    scales: Sequence[float | None] = guidance_scales or (None,)
    return [np.concatenate([sample_batch(first, scale) for first in firsts]) for scale in scales]
