"""Trained stages, loaded from their folders and checked to chain."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import format_size
from imagen_jax.parallel.sharding import with_shardings
from imagen_jax.stages.checkpoints import Checkpoints
from imagen_jax.stages.stage import Stage, build, check_fingerprint
from imagen_jax.stages.workdir import CONFIG_FILE, read_config


@dataclasses.dataclass(frozen=True)
class TrainedStage:
    """A stage with the weights to sample from.

    Attributes:
        stage: what its config describes.
        params: EMA weights of its network.
        encoder_params: weights of its text encoder.
        step: the training step of the weights.
        folder: where the stage was loaded from.
    """

    stage: Stage
    params: Any
    encoder_params: Any
    step: int
    folder: Path = Path()


def check_chain(configs: Sequence[StageConfig]) -> None:
    """Raises ConfigError unless the first stage is a base and each other starts from the size of the one before."""
    if not configs:
        raise ConfigError("no stages given: name their folders, the base first")
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


def load_stages(
    workdirs: Sequence[Path], mesh: Mesh, changes: Sequence[Mapping[str, Any]] | None = None
) -> list[TrainedStage]:
    """Returns the stages of some folders, base first, with `changes` to the sampling settings of each.

    Raises:
        ConfigError: as `check_chain` and `load_stage`.
    """
    changes = changes or [{}] * len(workdirs)
    # The configs first: whether the stages chain is known before any weight is read.
    configs = [read_config(workdir) for workdir in workdirs]
    check_chain(configs)
    configs = [
        config.with_changes({f"sampling.{key}": value for key, value in change.items()})
        for config, change in zip(configs, changes, strict=True)
    ]
    loaded: list[TrainedStage] = []
    for workdir, config in zip(workdirs, configs, strict=True):
        loaded.append(load_stage(workdir, config, mesh, loaded))
    return loaded


def find_stages(folder: Path) -> list[Path]:
    """Returns the stage folders of a cascade: the folder itself if it is one, else those in it, smallest image first.

    Raises:
        ConfigError: there is no such folder, or no stage in it.
    """
    if (folder / CONFIG_FILE).is_file():
        return [folder]
    if not folder.is_dir():
        raise ConfigError(f"stage folder {str(folder)!r} does not exist: give the --workdir of a training run")
    found = [path.parent for path in sorted(folder.glob(f"*/{CONFIG_FILE}")) if (path.parent / "checkpoints").is_dir()]
    if not found:
        raise ConfigError(
            f"{str(folder)!r} is not a stage folder and has none in it: give the --workdir of a training run, or a "
            "folder of such folders"
        )
    return sorted(found, key=lambda path: read_config(path).image_hw)


def load_stage(workdir: Path, config: StageConfig, mesh: Mesh, others: Sequence[TrainedStage] = ()) -> TrainedStage:
    """Loads a stage with the EMA weights of its folder.

    Args:
        workdir: the folder of a training run.
        config: the folder's config, perhaps with other sampling settings.
        mesh: where the weights go.
        others: stages that are loaded already; the text encoder is shared with one that has the same.

    Raises:
        ConfigError: the folder has no checkpoint, or one of another model.
        TrainingError: every checkpoint is damaged.
    """
    # memory may suffice for one copy of a large encoder, and not for one for each stage
    shared = next((other for other in others if _encoder_key(other.stage.config) == _encoder_key(config)), None)
    built = build(config, shared.stage.encoder if shared else None)
    abstract = with_shardings(jax.eval_shape(built.init, jax.random.key(0)), mesh)
    checkpoints = Checkpoints(workdir)
    if checkpoints.latest_step is None:
        raise ConfigError(f"stage folder {str(workdir)!r} has no complete checkpoint: train it first")
    params = checkpoints.restore_ema(abstract)
    step = checkpoints.latest_step
    checkpoints.close()
    check_fingerprint(built.encoder, config.text)
    return TrainedStage(built, params, shared.encoder_params if shared else built.encoder.load(mesh), step, workdir)


def _encoder_key(config: StageConfig) -> tuple[str, int, str]:
    """Returns what identifies a config's text encoder."""
    return config.text.model, config.text.length, config.text.dtype
