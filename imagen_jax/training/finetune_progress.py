"""Where a fine-tuning is, read from the files that it writes: for whoever watches it, also from another process."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Literal

from imagen_jax.errors import ConfigError
from imagen_jax.io.json_lines import is_number
from imagen_jax.pipelines.output_dir import IMAGES
from imagen_jax.stages.stage_folder import read_config
from imagen_jax.training.metric_writer import read_metrics

Phase = Literal["preparing", "drawing", "training", "comparing", "done"]
# what `finetune` writes
PRIOR, METADATA, ADAPTER, BEFORE_AFTER = "prior", "metadata.jsonl", "adapter", "before_after.png"
_PREVIEWS = "previews"


@dataclasses.dataclass(frozen=True)
class StageProgress:
    """Where the run of a stage is.

    Attributes:
        index: of the stage in the cascade.
        step: the last one that was recorded.
        steps: of the run; 0 where it is not known.
        losses: (step, loss) of the steps that were recorded; losses that are not finite are left out.
        previews: steps of its previews, see `preview_path`.
        seconds_left: by the speed that was recorded last; None where it is not known.
    """

    index: int
    step: int
    steps: int
    losses: list[tuple[int, float]]
    previews: list[int]
    seconds_left: float | None


@dataclasses.dataclass(frozen=True)
class FinetuneProgress:
    """Where a fine-tuning is.

    Attributes:
        phase: what it does: "preparing" its images, "drawing" images of the class, "training", "comparing" samples
            before and after, or "done".
        drawn: images of the class that exist.
        stages: the runs that have begun, in their order.
    """

    phase: Phase
    drawn: int
    stages: list[StageProgress]


def read_progress(out: Path) -> FinetuneProgress:
    """Returns where the fine-tuning of a folder is, see `finetune`; a folder that does not exist is being prepared."""
    drawn = out / PRIOR / IMAGES
    folders = sorted((path for path in out.glob("stage_*") if path.is_dir()), key=_index)
    stages = [_stage_progress(folder) for folder in folders]
    return FinetuneProgress(_phase(out, stages), len(list(drawn.glob("[0-9]*.png"))), stages)


def preview_path(out: Path, stage: int, step: int) -> Path:
    """Returns the path of the preview of a step of a stage's run."""
    return out / f"stage_{stage}" / _PREVIEWS / f"{step:08d}.png"


def _phase(out: Path, stages: list[StageProgress]) -> Phase:
    if (out / BEFORE_AFTER).exists():
        return "done"
    if (out / ADAPTER).is_dir():
        return "comparing"
    if stages:
        return "training"
    prior = out / PRIOR
    return "drawing" if prior.is_dir() and not (prior / IMAGES / METADATA).exists() else "preparing"


@functools.lru_cache(maxsize=256)
def _extent(folder: Path) -> tuple[int, int]:
    """Returns the steps of a run and the images of each, which never change. Raises ConfigError if they are missing."""
    training = read_config(folder, lambda _: None).training
    return training.steps, training.batch_size


def _index(folder: Path) -> int:
    end = folder.name.rpartition("_")[2]
    return int(end) if end.isdecimal() else -1


def _stage_progress(folder: Path) -> StageProgress:
    metrics = [line for line in read_metrics(folder) if is_number(line.get("loss"))]
    losses = [(int(line["step"]), float(line["loss"])) for line in metrics if math.isfinite(line["loss"])]
    step = int(metrics[-1]["step"]) if metrics else 0
    try:
        steps, batch_size = _extent(folder)
    except ConfigError:  # it is just being created
        steps, batch_size = 0, 0
    rate = float(metrics[-1].get("images_per_second", 0.0)) if metrics else 0.0
    left = (steps - step) * batch_size / rate if rate > 0 and steps else None
    previews = sorted(int(path.stem) for path in (folder / _PREVIEWS).glob("*.png") if path.stem.isdecimal())
    return StageProgress(_index(folder), step, steps, losses, previews, left)
