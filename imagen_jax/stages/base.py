"""The stage beside which a run trains an adapter: named in the run's folder, and not copied into it.

WORKDIR/base.json          where its weights are, which ones they are, and what identifies them

An adapter has kilobytes where its stage has gigabytes. The checksum says whether the stage is still the one that the
adapter was trained beside.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imagen_jax.errors import ConfigError
from imagen_jax.io.atomic import read_json, write_json
from imagen_jax.io.checksums import json_digest
from imagen_jax.io.paths import as_path
from imagen_jax.parallel import multihost
from imagen_jax.stages.adapter import split_adapter
from imagen_jax.stages.trainable import merge
from imagen_jax.stages.weights import SavedWeights, WeightsChoice

BASE_FILE = "base.json"


class Weights(Protocol):
    """Weights in a stage's folder, as `SavedWeights` and `PublishedWeights`."""

    @property
    def workdir(self) -> Path: ...
    @property
    def step(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def checksum(self) -> str: ...
    @property
    def shapes(self) -> Any: ...
    @property
    def published_config(self) -> str: ...
    @property
    def text_width(self) -> int: ...
    def load(self, abstract: Any, partial: bool = False) -> Any: ...


OpenWeightsFn = Callable[[Path, WeightsChoice], Weights]


class Base(BaseModel):
    """A stage that a run reads, such as the one beside an adapter: its folder, step and kind of weights, checksum."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    folder: str = Field(min_length=1)
    step: int = Field(ge=0)
    weights: Literal["ema", "raw"]
    checkpoint: str = Field(min_length=1)

    @classmethod
    def of(cls, weights: Weights) -> Base:
        """Returns the entry for weights of a stage."""
        kind: Any = weights.kind
        folder = str(as_path(weights.workdir).absolute())
        return cls(folder=folder, step=weights.step, weights=kind, checkpoint=weights.checksum)


def has_base(workdir: Path) -> bool:
    """Returns whether a stage's folder is that of a run that trains an adapter."""
    return (workdir / BASE_FILE).is_file()


def save_base(workdir: Path, base: Base, name: str = BASE_FILE) -> None:
    """Writes which stage a run that starts reads, before its first checkpoint; all processes call it. Raises OSError.

    Args:
        workdir: the run's folder.
        base: the stage.
        name: of the file.
    """
    if multihost.is_main_process():
        write_json(workdir / name, base.model_dump())
    multihost.barrier(f"{name} is written")


def read_base(path: Path) -> Base:
    """Returns the stage that a file of `save_base` names. Raises ConfigError if it is missing or damaged."""
    try:
        return Base.model_validate(read_json(path))
    except (ValidationError, OSError, ValueError) as error:
        raise ConfigError(f"{path} does not name a stage that the run reads: copy it again") from error


def open_base(workdir: Path, open_weights: OpenWeightsFn) -> Weights:
    """Returns the weights that a run's adapter is beside.

    Args:
        workdir: the run's folder.
        open_weights: opens those of a stage's folder, see `stage_folder.open_weights`.

    Raises:
        ConfigError: the file is damaged, the stage is gone, or its weights are others.
        TrainingError: they are damaged.
    """
    path = workdir / BASE_FILE
    base = read_base(path)
    try:
        weights = open_weights(as_path(base.folder), WeightsChoice(base.step, base.weights))
    except ConfigError as error:
        raise ConfigError(
            f"the adapter in {workdir} was trained beside step {base.step} of {base.folder}, which cannot be opened "
            f"({error}): put that stage back, or its folder's new place into {path}"
        ) from error
    if weights.checksum != base.checkpoint:
        raise ConfigError(
            f"the adapter in {workdir} was trained beside other weights than those in {base.folder}: put the stage "
            f"back whose checkpoint {base.checkpoint[:12]} {path} names"
        )
    return weights


class AdaptedWeights:
    """The weights of a run's adapter and of the stage beside which it is trained; with the interface of `SavedWeights`.

    Args:
        adapter: of the run's folder.
        base: from `open_base`.

    Attributes:
        base: the weights of the stage.
        workdir: the run's folder.
        step: the training step of the adapter.
        kind: "ema" or "raw", of the adapter.
        checksum: identifies both.
        shapes: all parameters, those of the adapter among them.
    """

    def __init__(self, adapter: SavedWeights, base: Weights) -> None:
        self._adapter, self.base = adapter, base
        # a base that is itself a run with an adapter would need both in its kernels
        nested, rest = split_adapter(base.shapes)
        if nested:
            raise ConfigError(
                f"{base.workdir} has an adapter itself: merge it first, imagen convert --stages={base.workdir} --merge"
            )
        self.workdir, self.kind = adapter.workdir, adapter.kind
        self.shapes = merge(adapter.shapes, rest)

    @property
    def step(self) -> int:
        """The step of the adapter; after `load`, of that which was loaded."""
        return self._adapter.step

    @property
    def checksum(self) -> str:
        """Identifies the checkpoints of the adapter and of the stage."""
        return json_digest([self._adapter.checksum, self.base.checksum])

    @property
    def published_config(self) -> str:
        """Is empty: the config of a run's folder identifies itself."""
        return ""

    @property
    def text_width(self) -> int:
        """The width D of the text embeddings that the network was trained with."""
        return self.base.text_width

    def load(self, abstract: Any, partial: bool = False) -> Any:
        """Loads parameters, see `SavedWeights.load`."""
        adapter, rest = split_adapter(abstract)
        loaded = self._adapter.load(adapter, partial) if adapter or not partial else {}
        return merge(loaded, self.base.load(rest, partial) if rest or not partial else {})
