"""Imagen, text-to-image diffusion cascades, in JAX.

Names are imported when they are first used, so that `import imagen_jax` is fast and imports no jax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagen_jax import diffusion
    from imagen_jax.config.load import load_config
    from imagen_jax.errors import ConfigError, TrainingError
    from imagen_jax.evaluation.evaluate import evaluate
    from imagen_jax.inspection.inspect import inspect
    from imagen_jax.pipelines.editor import ImagenEditor
    from imagen_jax.pipelines.imagen import ImagenPipeline
    from imagen_jax.planning.plan import plan
    from imagen_jax.training.loop import train

__version__ = "0.2.0"

_MODULES = {
    "ConfigError": "imagen_jax.errors",
    "ImagenEditor": "imagen_jax.pipelines.editor",
    "ImagenPipeline": "imagen_jax.pipelines.imagen",
    "TrainingError": "imagen_jax.errors",
    "evaluate": "imagen_jax.evaluation.evaluate",
    "inspect": "imagen_jax.inspection.inspect",
    "load_config": "imagen_jax.config.load",
    "plan": "imagen_jax.planning.plan",
    "train": "imagen_jax.training.loop",
}
__all__ = [
    "ConfigError",
    "ImagenEditor",
    "ImagenPipeline",
    "TrainingError",
    "diffusion",
    "evaluate",
    "inspect",
    "load_config",
    "plan",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "diffusion":
        return importlib.import_module("imagen_jax.diffusion")
    if name not in _MODULES:
        raise AttributeError(f"module 'imagen_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
