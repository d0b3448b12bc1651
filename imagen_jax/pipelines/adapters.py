"""Adapters that a pipeline has loaded: added to the kernels of its stages, each with a scale."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp

from imagen_jax.errors import ConfigError, unknown_name_error
from imagen_jax.images.array import format_size
from imagen_jax.io.checksums import json_digest
from imagen_jax.pipelines.loading import TrainedStage
from imagen_jax.stages.lora import KERNEL, add_product
from imagen_jax.stages.lora_files import LoraFile, lora_paths, read_lora
from imagen_jax.stages.trainable import Tree

_MAX_SCALE = 100.0

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LoadedLora:
    """An adapter of some stages.

    Attributes:
        files: stage index -> its file.
        scale: of all its changes.
    """

    files: Mapping[int, LoraFile]
    scale: float


@dataclasses.dataclass(frozen=True)
class Adapters:
    """The adapters of a pipeline, by name, in the order in which they were loaded.

    Attributes:
        stages: as they are without adapters.
        loaded: the adapters.
    """

    stages: Sequence[TrainedStage]
    loaded: Mapping[str, LoadedLora] = dataclasses.field(default_factory=dict)

    @property
    def scales(self) -> dict[str, float]:
        """The scale of each adapter."""
        return {name: lora.scale for name, lora in self.loaded.items()}

    def load(self, path: Path, scale: float, name: str, stage: int | None) -> Self:
        """Returns these adapters and another one; see `ImagenPipeline.load_lora`."""
        files: dict[int, LoraFile] = {}
        for file in lora_paths(path):
            index, lora = self._place(file, stage)
            if index in files:
                raise ConfigError(f"{path} has two adapters of stage {index}: give one of its files, with stage=INDEX")
            files[index] = lora
        name = name or path.absolute().stem
        if name in self.loaded:
            raise ConfigError(
                f"an adapter {name!r} is loaded already: unload it, change its scale, or give this one another name"
            )
        return dataclasses.replace(self, loaded={**self.loaded, name: LoadedLora(files, _checked(scale))})

    def _place(self, path: Path, stage: int | None) -> tuple[int, LoraFile]:
        """Returns the stage that a file's adapter fits, and the adapter. Raises ConfigError if none or several do."""
        if stage is not None and not 0 <= stage < len(self.stages):
            raise ConfigError(f"there is no stage {stage}: the pipeline has {len(self.stages)}, counted from 0")
        fitting: dict[int, LoraFile] = {}
        problems: list[str] = []
        for index in range(len(self.stages)) if stage is None else [stage]:
            config, params = self.stages[index].stage.config, self.stages[index].params
            try:
                lora = read_lora(path, params, config.model.network)
                if lora.origin is not None and lora.origin.image_size != config.image_hw:
                    sizes = format_size(lora.origin.image_size), format_size(config.image_hw)
                    raise ConfigError(
                        f"{path} was trained for images of {sizes[0]}, and stage {index} makes {sizes[1]}"
                    )
                fitting[index] = lora
            except ConfigError as error:
                problems += error.problems
        if not fitting:
            raise ConfigError(*dict.fromkeys(problems))
        # stages of equal networks are told apart by the name of the file's folder
        named = {index: lora for index, lora in fitting.items() if lora.stage == index}
        if len(named or fitting) > 1:
            raise ConfigError(f"{path} fits the stages {', '.join(map(str, fitting))}: say which, with stage=INDEX")
        index, lora = next(iter((named or fitting).items()))
        base = self.stages[index].checksum
        if lora.origin is not None and base and lora.origin.base != base:
            logger.warning("%s was trained beside other weights than those of stage %d", path, index)
        return index, lora

    def with_scale(self, name: str, scale: float) -> Self:
        """Returns these adapters, one of them with another scale. Raises ConfigError for an unknown one."""
        self._check(name)
        changed = dataclasses.replace(self.loaded[name], scale=_checked(scale))
        return dataclasses.replace(self, loaded={**self.loaded, name: changed})

    def without(self, name: str) -> Self:
        """Returns these adapters without one of them, or without any for "". Raises ConfigError for an unknown one."""
        if name:
            self._check(name)
        kept = {key: lora for key, lora in self.loaded.items() if name and key != name}
        return dataclasses.replace(self, loaded=kept)

    def _check(self, name: str) -> None:
        if name not in self.loaded:
            raise unknown_name_error("adapter", name, self.loaded)

    def apply(self, index: int) -> TrainedStage:
        """Returns a stage with the adapters in its kernels; the others are shared with the stage without."""
        trained = self.stages[index]
        loras = [(lora.files[index], lora.scale) for lora in self.loaded.values() if index in lora.files]
        if not loras:
            return trained
        paths = sorted({path for file, _ in loras for path in file.factors})
        kernels = [_at(trained.params, path) for path in paths]
        changes = [[file.factors[path] for file, _ in loras if path in file.factors] for path in paths]
        scales = [
            [jnp.float32(scale * file.factors[path].scale) for file, scale in loras if path in file.factors]
            for path in paths
        ]
        factors = [[(jnp.asarray(change.a), jnp.asarray(change.b)) for change in one] for one in changes]
        merged = _merge_program(tuple(kernel.sharding for kernel in kernels))(kernels, factors, scales)
        params = trained.params
        for path, kernel in zip(paths, merged, strict=True):
            params = _replaced(params, path.split("/"), kernel)
        applied = [[file.digest, scale] for file, scale in loras if scale]
        checksum = json_digest([trained.checksum, applied]) if applied and trained.checksum else trained.checksum
        return dataclasses.replace(trained, params=params, checksum=checksum)


def _checked(scale: float) -> float:
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not abs(scale) <= _MAX_SCALE:
        raise ConfigError(f"the scale {scale!r} of an adapter is not a number in [-{_MAX_SCALE:g}, {_MAX_SCALE:g}]")
    return float(scale)


@functools.cache
def _merge_program(shardings: tuple[jax.sharding.Sharding, ...]) -> jax.stages.Wrapped:
    """Returns the program that adds changes to kernels; other scales need no other one."""

    def merge(kernels: list[jax.Array], factors: list[list[Any]], scales: list[list[jax.Array]]) -> list[jax.Array]:
        merged = []
        for kernel, changes, numbers in zip(kernels, factors, scales, strict=True):
            for (a, b), scale in zip(changes, numbers, strict=True):
                kernel = add_product(kernel, a, b, scale)
            merged.append(kernel)
        return merged

    return jax.jit(merge, out_shardings=list(shardings))


def _at(params: Tree, path: str) -> Any:
    for name in path.split("/"):
        params = params[name]
    return params[KERNEL]


def _replaced(params: Tree, path: Sequence[str], kernel: jax.Array) -> Tree:
    """Returns parameters with another kernel in the module at a path; all else is shared."""
    if not path:
        return {**params, KERNEL: kernel}
    return {**params, path[0]: _replaced(params[path[0]], path[1:], kernel)}
