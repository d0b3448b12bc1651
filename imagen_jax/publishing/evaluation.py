"""The results of `imagen evaluate`, read for a model card and checked to be of the stages that are published."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from imagen_jax.config.load import load_config
from imagen_jax.config.schema import EvaluationConfig
from imagen_jax.datasets.shapes.judge import rate_row
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.judges import Scores
from imagen_jax.evaluation.progress import MANIFEST
from imagen_jax.io.atomic import read_json
from imagen_jax.io.changes import changes, flatten
from imagen_jax.io.paths import as_path
from imagen_jax.io.text import printable
from imagen_jax.pipelines.loading import TrainedStage
from imagen_jax.pipelines.output_dir import stages_manifest

SCORES = "scores.json"
DIAGNOSTICS = "diagnostics.json"
METRICS = "metrics"  # key of scores.json

logger = logging.getLogger(__name__)


class Evaluation(NamedTuple):
    """Results of an evaluation.

    Attributes:
        config: what was evaluated: the captions, their number, the judge.
        sampling: the settings of each stage.
        scores: by row, see `evaluate`; None without a judge.
        diagnostics: metrics of each stage by name.
        metrics: figures by name as scores.json has them, see `figures.Figure`; none without metrics.
    """

    config: EvaluationConfig
    sampling: list[dict[str, Any]]
    scores: Scores | None
    diagnostics: list[dict[str, float]]
    metrics: dict[str, dict[str, Any]]


def find_evaluation(stages: Sequence[TrainedStage], given: str | Path | None) -> Evaluation | None:
    """Returns the evaluation of some stages.

    Args:
        stages: of the cascade.
        given: the folder of the evaluation, or its scores.json; None to look in the folder that has the stage folders.

    Returns:
        The evaluation; None if none is given, and there is none of these stages beside them.

    Raises:
        ConfigError: the given one is not complete, or of other stages.
    """
    if given is not None:
        folder = as_path(given)
        return _read(folder.parent if folder.name in (SCORES, DIAGNOSTICS) else folder, stages)
    parents = {trained.folder.parent for trained in stages if trained.folder != Path()}
    folder = parents.pop() if len(parents) == 1 else Path()
    if folder == Path() or not (folder / MANIFEST).is_file():
        return None
    try:
        return _read(folder, stages)
    except ConfigError as error:
        logger.warning("the evaluation in %s is not used: %s", folder, error)
        return None


def _read(folder: Path, stages: Sequence[TrainedStage]) -> Evaluation:
    """Returns the results in a folder. Raises ConfigError."""
    manifest = _read_file(folder / MANIFEST, dict)
    _check_stages(folder, manifest.get("stages"), stages)
    try:
        config = load_config(manifest["config"], schema=EvaluationConfig)
        sampling = [manifest["stages"][str(index)]["sampling"] for index in range(len(stages))]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{folder / MANIFEST} does not describe an evaluation ({error!r}): evaluate again") from error
    content = _read_file(folder / SCORES, dict) if config.judge or "metrics" in manifest else {}
    metrics = _check_metrics(folder / SCORES, content.pop(METRICS, {}))
    if bool(metrics) != ("metrics" in manifest):
        raise ConfigError(f"{folder / SCORES} has not the metrics that {MANIFEST} beside it has: evaluate again")
    scores = _check_scores(folder / SCORES, content, config.num_samples) if config.judge else None
    return Evaluation(config, sampling, scores, _read_diagnostics(folder / DIAGNOSTICS, len(stages)), metrics)


def _read_file(path: Path, kind: type) -> Any:
    try:
        value = read_json(path)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} does not exist: give the --out of a complete `imagen evaluate` of these stages"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): evaluate again") from error
    if not isinstance(value, kind):
        raise ConfigError(f"{path} is not that of an evaluation: evaluate again")
    return value


def _check_stages(folder: Path, evaluated: Any, stages: Sequence[TrainedStage]) -> None:
    """Raises ConfigError unless an evaluation was of these weights, however they were sampled."""
    now = {key: _weights(stage) for key, stage in json.loads(json.dumps(stages_manifest(stages))).items()}
    before = evaluated if isinstance(evaluated, dict) else {}
    before = {key: _weights(stage) for key, stage in before.items() if isinstance(stage, dict)}
    changed = list(changes(flatten(before, "stages."), flatten(now, "stages.")).values())
    if changed:
        raise ConfigError(
            f"{folder} has an evaluation of other weights ({printable(changed[0])}): evaluate these stages"
        )


def _weights(stage: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in stage.items() if key != "sampling"}


def _check_metrics(path: Path, rows: Any) -> dict[str, dict[str, Any]]:
    """Returns figures that say what they are of. Raises ConfigError."""
    for name, row in rows.items() if isinstance(rows, dict) else [("metrics", rows)]:
        try:
            is_sound = math.isfinite(row["value"]) and row["images"]["num_images"] > 0
            is_sound = is_sound and all(isinstance(row[key], str) for key in ("network", "weights", "resizing"))
        except (KeyError, TypeError):
            is_sound = False
        if not is_sound:
            raise ConfigError(
                f"{path} is damaged: its metric {printable(str(name))[:80]!r} is not a figure: evaluate again"
            )
    return rows


def _check_scores(path: Path, scores: Any, num_samples: int) -> Scores:
    """Returns a table of scores whose rates and intervals follow from its counts. Raises ConfigError."""
    for name, row in scores.items():
        try:
            counts = int(row["correct"]), int(row["total"])
            expected = rate_row(*counts)
            is_sound = row.keys() == expected.keys() and all(
                math.isclose(row[key], value, abs_tol=1e-9) for key, value in expected.items()
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError):
            is_sound = False
        if not is_sound:
            raise ConfigError(
                f"{path} is damaged: its row {printable(str(name))[:80]!r} is not one of rates: evaluate again"
            )
    if scores.get("all", {}).get("total") != num_samples:
        raise ConfigError(f"{path} is not that of {num_samples} captions, as {MANIFEST} beside it has: evaluate again")
    return scores


def _read_diagnostics(path: Path, count: int) -> list[dict[str, float]]:
    """Returns the metrics of each stage. Raises ConfigError."""
    rows = _read_file(path, list)
    metrics = [row.get("metrics") if isinstance(row, dict) else None for row in rows]
    for values in metrics:
        if not isinstance(values, dict) or not all(isinstance(value, (int, float)) for value in values.values()):
            raise ConfigError(f"{path} is damaged: it has no metrics of each stage: evaluate again")
    if len(metrics) != count:
        raise ConfigError(f"{path} has {len(metrics)} stages, and {count} are published: evaluate these stages")
    return [values for values in metrics if values is not None]
