"""The weights in a stage's folder, to sample from or to start another run with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imagen_jax.errors import ConfigError
from imagen_jax.stages import saved_arrays
from imagen_jax.stages.checkpoints import Checkpoints
from imagen_jax.stages.frozen import ITEM, frozen_folder, frozen_shapes
from imagen_jax.stages.trainable import merge, param_paths, select


class SavedWeights:
    """The parameters of the latest checkpoint that passes verification, and the frozen ones of the run.

    Nothing else is read or verified.

    Args:
        workdir: the stage's folder.
        item: "ema_params" or "params", the raw ones.

    Attributes:
        workdir: the stage's folder.
        step: the step of the checkpoint.
        shapes: all parameters, as nested dicts of array metadata with `shape` and `dtype`.

    Raises:
        ConfigError: the folder has no checkpoint.
        TrainingError: every checkpoint is damaged, or the frozen parameters are.
    """

    def __init__(self, workdir: Path, item: str = "ema_params") -> None:
        checkpoints = Checkpoints(workdir)
        if checkpoints.latest_step is None:
            raise ConfigError(f"stage folder {str(workdir)!r} has no complete checkpoint: train it first")
        self.workdir, self._item = workdir, item
        self.step = checkpoints.latest_intact({item})
        self._checkpoint = checkpoints.path(self.step)
        self._trained = saved_arrays.shapes(self._checkpoint)[item]
        training = checkpoints.metadata(self.step)["config"].get("training", {})
        self.shapes = merge(self._trained, frozen_shapes(workdir)) if training.get("trainable") else self._trained
        checkpoints.close()

    @property
    def text_width(self) -> int:
        """The width D of the text embeddings that the network was trained with."""
        return self.shapes["conditioning"]["text_pooling"]["norm"]["scale"].shape[0]

    def load(self, abstract: Any, partial: bool = False) -> Any:
        """Loads parameters.

        Args:
            abstract: their shapes, types and shardings.
            partial: whether the folder may have others.

        Raises:
            ConfigError: names, shapes or types differ from those of the folder.
        """
        paths, trained_paths = set(param_paths(abstract)), set(param_paths(self._trained))
        stored = select(self.shapes, paths) if partial else self.shapes
        mismatches = saved_arrays.tree_mismatches(stored, abstract, self._item)
        if mismatches:
            raise saved_arrays.mismatch_error(f"checkpoint {self._checkpoint}", mismatches)
        loaded: dict[str, Any] = {}
        for folder, item, part in (
            (self._checkpoint, self._item, select(abstract, paths & trained_paths)),
            (frozen_folder(self.workdir), ITEM, select(abstract, paths - trained_paths)),
        ):
            if part:
                loaded = merge(loaded, saved_arrays.load(folder, {item: part}, partial=True)[item])
        return loaded
