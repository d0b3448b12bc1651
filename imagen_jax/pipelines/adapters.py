"""What a pipeline has loaded beside its stages: adapters of their kernels, each with a scale, and learned tokens."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import traverse_util

from imagen_jax.errors import ConfigError, unknown_name_error
from imagen_jax.images.array import format_size
from imagen_jax.io.checksums import json_digest
from imagen_jax.io.text import printable
from imagen_jax.pipelines.loading import TrainedStage
from imagen_jax.stages.lora import KERNEL, Factors, add_product
from imagen_jax.stages.lora_files import LoraFile, lora_paths, read_lora
from imagen_jax.stages.text import PromptEncoder
from imagen_jax.text.learned_tokens import FILE as LEARNED
from imagen_jax.text.learned_tokens import LearnedFile, Words, read_learned

_MAX_SCALE = 100.0

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LoadedLora:
    """An adapter of some stages.

    Attributes:
        changes: stage index -> the SHA-256 of its file, and the change of each kernel by the path of its module.
        scale: of all its changes.
    """

    changes: Mapping[int, tuple[str, Mapping[str, Factors]]]
    scale: float


@dataclasses.dataclass(frozen=True)
class Adapters:
    """The adapters of a pipeline, by name, in the order in which they were loaded, and its learned tokens.

    Attributes:
        stages: as they are without adapters.
        loaded: the adapters.
        files: word -> the file that it was loaded from.
    """

    stages: Sequence[TrainedStage]
    loaded: Mapping[str, LoadedLora] = dataclasses.field(default_factory=dict)
    files: Mapping[str, LearnedFile] = dataclasses.field(default_factory=dict)

    @property
    def scales(self) -> dict[str, float]:
        """The scale of each adapter."""
        return {name: lora.scale for name, lora in self.loaded.items()}

    def load(
        self, path: Path, scale: float, name: str, stage: int | None, encoders: Sequence[PromptEncoder | None] = ()
    ) -> Self:
        """Returns these adapters and another one, with the words beside it; see `ImagenPipeline.load_lora`."""
        changes: dict[int, tuple[str, Mapping[str, Factors]]] = {}
        for file in map(read_lora, lora_paths(path)):
            index, factors = self._place(file, stage)
            if index in changes:
                raise ConfigError(f"{path} has two adapters of stage {index}: give one of its files, with stage=INDEX")
            changes[index] = file.digest, factors
        name = name or path.absolute().stem
        if name in self.loaded:
            raise ConfigError(
                f"an adapter {name!r} is loaded already: unload it, change its scale, or give this one another name"
            )
        adapters = self.load_words(path, "", encoders) if (path / LEARNED).is_file() else self
        return dataclasses.replace(adapters, loaded={**self.loaded, name: LoadedLora(changes, _checked(scale))})

    def _place(self, file: LoraFile, stage: int | None) -> tuple[int, dict[str, Factors]]:
        """Returns the stage that an adapter fits, and its changes there. Raises ConfigError if none or several do."""
        if stage is not None and not 0 <= stage < len(self.stages):
            raise ConfigError(f"there is no stage {stage}: the pipeline has {len(self.stages)}, counted from 0")
        fitting: dict[int, dict[str, Factors]] = {}
        problems: list[str] = []
        for index in range(len(self.stages)) if stage is None else [stage]:
            config, params = self.stages[index].stage.config, self.stages[index].params
            try:
                factors = file.factors(params, config.model.network)
                if file.origin is not None and file.origin.image_size != config.image_hw:
                    sizes = format_size(file.origin.image_size), format_size(config.image_hw)
                    raise ConfigError(
                        f"{file.path} was trained for images of {sizes[0]}, and stage {index} makes {sizes[1]}"
                    )
                fitting[index] = factors
            except ConfigError as error:
                problems += error.problems
        if not fitting:
            raise ConfigError(*dict.fromkeys(problems))
        if file.stage in fitting:  # stages of equal networks are told apart by the name of the file's folder
            fitting = {file.stage: fitting[file.stage]}
        if len(fitting) > 1:
            raise ConfigError(
                f"{file.path} fits the stages {', '.join(map(str, fitting))}: say which, with stage=INDEX"
            )
        ((index, factors),) = fitting.items()
        base = self.stages[index].checksum
        if file.origin is not None and base and file.origin.base != base:
            logger.warning("%s was trained beside other weights than those of stage %d", file.path, index)
        return index, factors

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

    def load_words(self, path: Path, word: str, encoders: Sequence[PromptEncoder | None]) -> Self:
        """Returns these adapters and the words of a file; see `ImagenPipeline.load_embedding`."""
        file = read_learned(path, word)
        for name in file.words:
            is_other = name in self.files and self.files[name].digest != file.digest
            if is_other or any(name in encoder.encoder.learned for encoder in encoders if encoder):
                raise ConfigError(f"the word {printable(name)!r} is learned already: unload it, or give another word")
        used = [encoder for encoder in dict.fromkeys(encoders) if encoder]
        if not used:
            raise ConfigError("the pipeline has no text encoder, which has the words: load it with text_encoder=True")
        if not any(_fits(file, encoder) for encoder in used):
            file.fitting(used[0].width, lambda: used[0].fingerprint)
        return dataclasses.replace(self, files={**self.files, **dict.fromkeys(file.words, file)})

    def without_words(self, word: str) -> Self:
        """Returns these adapters without a learned token, or without any for "". Raises ConfigError if it has none."""
        if word and word not in self.files:
            raise unknown_name_error("learned token", word, self.files)
        return dataclasses.replace(self, files={key: file for key, file in self.files.items() if word and key != word})

    def words_of(self, encoder: PromptEncoder) -> Words:
        """Returns the learned tokens that are of a text encoder."""
        return {word: file.words[word] for word, file in self.files.items() if _fits(file, encoder)}

    def _check(self, name: str) -> None:
        if name not in self.loaded:
            raise unknown_name_error("adapter", name, self.loaded)

    def apply(self, index: int) -> TrainedStage:
        """Returns a stage with the adapters in its kernels; the others are shared with the stage without."""
        trained = self.stages[index]
        if self.files and trained.checksum:
            words = sorted((word, file.digest) for word, file in self.files.items())
            trained = dataclasses.replace(trained, checksum=json_digest([trained.checksum, words]))
        loras = [(*lora.changes[index], lora.scale) for lora in self.loaded.values() if index in lora.changes]
        if not loras:
            return trained
        products: dict[str, list[tuple[Any, Any, jax.Array]]] = {}
        for _, factors, scale in loras:
            for path, (a, b, own) in factors.items():
                products.setdefault(f"{path}/{KERNEL}", []).append((a, b, jnp.float32(scale * own)))
        leaves = traverse_util.flatten_dict(trained.params, sep="/")
        kernels = {path: leaves[path] for path in products}
        merge = _merge_program(tuple(sorted((path, kernel.sharding) for path, kernel in kernels.items())))
        params = traverse_util.unflatten_dict(leaves | merge(kernels, products), sep="/")
        applied = [[digest, scale] for digest, _, scale in loras if scale]
        checksum = json_digest([trained.checksum, applied]) if applied and trained.checksum else trained.checksum
        return dataclasses.replace(trained, params=params, checksum=checksum)


def _fits(file: LearnedFile, encoder: PromptEncoder) -> bool:
    """Returns whether the words of a file are of a text encoder."""
    try:
        return bool(file.fitting(encoder.width, lambda: encoder.fingerprint))
    except ConfigError:
        return False


def _checked(scale: float) -> float:
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not abs(scale) <= _MAX_SCALE:
        raise ConfigError(f"the scale {scale!r} of an adapter is not a number in [-{_MAX_SCALE:g}, {_MAX_SCALE:g}]")
    return float(scale)


@functools.cache
def _merge_program(shardings: tuple[tuple[str, jax.sharding.Sharding], ...]) -> jax.stages.Wrapped:
    """Returns the program that adds products to kernels, whose shardings they keep; other scales need no other one."""

    def merge(kernels: dict[str, jax.Array], products: dict[str, list[Any]]) -> dict[str, jax.Array]:
        for path, changes in products.items():
            for a, b, scale in changes:
                kernels[path] = add_product(kernels[path], a, b, scale)
        return kernels

    return jax.jit(merge, out_shardings=dict(shardings))
