"""The cascade with the adapters that a batch asks for, besides those that it always has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from imagen_jax.errors import ConfigError
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.serving.jobs import LoraChoice


def no_adapters(adapter_id: str) -> Path:
    """Raises ConfigError: there are no adapters."""
    raise ConfigError("this server has no adapters that jobs can ask for: start it with --finetune_dir=DIR")


class AdapterSwitch:
    """Changes adapters between batches; nothing is compiled for it but their addition. For one thread.

    One set of adapters is loaded at a time, beside the cascade without them, which stays as it is.

    Args:
        pipeline: the cascade.
        path: returns the folder of an adapter by its id; raises ConfigError if it is gone.
    """

    def __init__(self, pipeline: ImagenPipeline, path: Callable[[str], Path]) -> None:
        self._base = self._own = pipeline
        self._path = path
        self._loaded: list[LoraChoice] = []

    def apply(self, pipeline: ImagenPipeline, lora: Sequence[LoraChoice]) -> ImagenPipeline:
        """Returns a pipeline of the cascade, with settings of its own, with adapters.

        Raises:
            ConfigError: one is gone, damaged, or that of another cascade.
        """
        paths = [self._path(choice.id) for choice in lora]
        if not lora:
            return pipeline
        if [choice.id for choice in lora] != [choice.id for choice in self._loaded]:
            # in the order that is asked for: sums are rounded by it
            self._own, self._loaded = self._base.with_adapters_of(self._base), []
            for choice, path in zip(lora, paths, strict=True):
                self._own.load_lora(path, choice.scale, name=choice.name)
                self._loaded.append(choice)
        for index, choice in enumerate(lora):
            if choice.scale != self._loaded[index].scale:
                self._own.set_lora_scale(choice.name, choice.scale)
                self._loaded[index] = choice
        return pipeline.with_adapters_of(self._own)
