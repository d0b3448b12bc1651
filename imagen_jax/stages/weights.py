"""The weights in a stage's folder, to sample from or to start another run with."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imagen_jax.errors import ConfigError, unknown_name_error
from imagen_jax.io.checksums import top_level_checksum
from imagen_jax.stages import saved_arrays
from imagen_jax.stages.checkpoints import MAX_VANISHED, Checkpoints, VanishedError
from imagen_jax.stages.frozen import ITEM, frozen_folder, frozen_shapes
from imagen_jax.stages.trainable import merge, param_paths, select

ITEMS = {"ema": "ema_params", "raw": "params"}


class WeightsChoice(NamedTuple):
    """Which weights of a stage's folder to sample from.

    Attributes:
        step: the step of the checkpoint; None for the newest.
        kind: "ema" for the moving average, "raw" for the parameters that are trained; None for the moving average, or
            for what was published.
    """

    step: int | None = None
    kind: str | None = None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> WeightsChoice:
        """Returns the choice with some attributes given by name. Raises ConfigError if a name or value is not one."""
        for name in values.keys() - set(cls._fields):
            raise unknown_name_error("weights: key", name, cls._fields)
        choice = cls(**values)
        if choice.kind is not None and choice.kind not in ITEMS:
            raise unknown_name_error("weights", choice.kind, ITEMS)
        if choice.step is not None and (
            isinstance(choice.step, bool) or not isinstance(choice.step, (int, np.integer))
        ):
            raise ConfigError(
                f"step {choice.step!r} of the weights is not an integer: give one, or None for the newest"
            )
        return choice


LATEST_EMA = WeightsChoice()


def text_width(shapes: Any) -> int:
    """Returns the width D of text embeddings that a stage's network takes, from the shapes of its parameters."""
    if "add_embedding" in shapes:  # of DeepFloyd IF's network
        norm = shapes["add_embedding"]["norm1"]
    else:
        norm = shapes["conditioning"]["text_pooling"]["norm"]
    width: int = norm["scale"].shape[0]
    return width


class SavedWeights:
    """The parameters of the latest checkpoint that passes verification, and the frozen ones of the run.

    Nothing else is read or verified. A run may train in the folder: if it deletes the checkpoint before its arrays are
    loaded, the next one is taken.

    Args:
        workdir: the stage's folder.
        item: "ema_params" or "params", the raw ones.
        step: of the checkpoint to take; None for the latest.

    Attributes:
        workdir: the stage's folder.
        step: the step of the checkpoint; after `load`, of that which was loaded.
        kind: "ema" or "raw".
        checksum: SHA-256 of the files beside its arrays, one of which Orbax gives the time of the save.
        shapes: all parameters, as nested dicts of array metadata with `shape` and `dtype`.

    Raises:
        ConfigError: the folder has no such checkpoint.
        TrainingError: every checkpoint is damaged, or the frozen parameters are.
    """

    def __init__(self, workdir: Path, item: str = "ema_params", step: int | None = None) -> None:
        self.workdir, self._item, self._chosen_step = workdir, item, step
        self.kind = next(kind for kind, name in ITEMS.items() if name == item)
        self._checkpoints = Checkpoints(workdir)
        self._checkpoints.close()
        if step is None and self._checkpoints.latest_step is None:
            raise ConfigError(f"stage folder {str(workdir)!r} has no complete checkpoint: train it first")
        self._open()

    def _open(self) -> None:
        """Reads which parameters the checkpoint has."""
        self.step, (self._trained, config) = self._checkpoints.read({self._item}, self._describe, self._chosen_step)
        self.checksum = top_level_checksum(self._checkpoints.checksums(self.step))
        has_codec = config.get("codec", {}).get("kind", "pixels") != "pixels"
        has_base = config.get("adapter", {}).get("kind", "none") != "none"  # whose weights are in another folder
        has_frozen = config.get("training", {}).get("trainable") or (has_codec and not has_base)
        self.shapes = merge(self._trained, frozen_shapes(self.workdir)) if has_frozen else self._trained

    def _describe(self, step: int) -> tuple[Any, dict[str, Any]]:
        shapes = saved_arrays.shapes(self._checkpoints.path(step))[self._item]
        return shapes, self._checkpoints.metadata(step)["config"]

    @property
    def published_config(self) -> str:
        """Is empty: the config of a run's folder identifies itself."""
        return ""

    @property
    def text_width(self) -> int:
        """The width D of the text embeddings that the network was trained with."""
        return text_width(self.shapes)

    def load(self, abstract: Any, partial: bool = False) -> Any:
        """Loads parameters.

        Args:
            abstract: their shapes, types and shardings.
            partial: whether the folder may have others.

        Raises:
            ConfigError: names, shapes or types differ from those of the folder.
            TrainingError: as of the constructor.
        """
        for _ in range(MAX_VANISHED):
            with contextlib.suppress(VanishedError):
                return self._checkpoints.read_at(self.step, lambda: self._load(abstract, partial))
            self._open()
        raise self._checkpoints.vanished_error()

    def _load(self, abstract: Any, partial: bool) -> Any:
        checkpoint = self._checkpoints.path(self.step)
        paths, trained_paths = set(param_paths(abstract)), set(param_paths(self._trained))
        stored = select(self.shapes, paths) if partial else self.shapes
        mismatches = saved_arrays.tree_mismatches(stored, abstract, self._item)
        if mismatches:
            raise saved_arrays.mismatch_error(f"checkpoint {checkpoint}", mismatches)
        loaded: dict[str, Any] = {}
        for folder, item, part in (
            (checkpoint, self._item, select(abstract, paths & trained_paths)),
            (frozen_folder(self.workdir), ITEM, select(abstract, paths - trained_paths)),
        ):
            if part:
                loaded = merge(loaded, saved_arrays.load(folder, {item: part}, partial=True)[item])
        return loaded
