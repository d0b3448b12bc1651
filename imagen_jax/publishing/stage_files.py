"""Writes what a published cascade has of a stage: its config, and its weights as safetensors."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from imagen_jax.config.load import to_json
from imagen_jax.config.paths import map_paths
from imagen_jax.config.schema import StageConfig
from imagen_jax.io.atomic import write_json
from imagen_jax.io.bucket import is_bucket
from imagen_jax.io.tensor_files import FLOATS, TensorSpec, write_shards
from imagen_jax.stages.published import CONFIG, ORIGIN, SEPARATOR, TextEncoderEntry


def portable_config(config: StageConfig, encoder: TextEncoderEntry) -> StageConfig:
    """Returns a stage's config without what only the machine that trained it knows: of paths, their last parts.

    Args:
        config: as it was trained.
        encoder: its text encoder, whose fingerprint it gets.
    """
    changes: dict[str, Any] = {"text.model": encoder.model, "text.fingerprint": encoder.fingerprint}
    changes |= {"text.cache": "", "text.learned": ()}
    return map_paths(config, portable_path).with_changes(changes)


def portable_path(path: str) -> str:
    """Returns a path's last part if it begins at the root, a home folder or a bucket, or leaves the working directory.

    Names of another kind, such as that of a data set of TFDS, stay as they are.
    """
    pure = PurePosixPath(path)
    is_place = pure.is_absolute() or path.startswith("~") or is_bucket(path) or ".." in pure.parts
    return pure.name if is_place else path


def write_stage(folder: Path, config: StageConfig, params: Any, max_shard_size: int, origin: Any = None) -> None:
    """Writes a stage's config and weights to a new folder, one tensor after another.

    Args:
        folder: on a disk.
        config: see `portable_config`.
        params: nested dicts of arrays, on any devices of this process.
        max_shard_size: bytes of tensors in a file; a larger tensor has a file of its own.
        origin: what it keeps of the pipeline that it was converted from, see `find_origin`; None for nothing.

    Raises:
        OSError: a file cannot be written.
    """
    write_json(folder / CONFIG, to_json(config))
    if origin is not None:
        write_json(folder / ORIGIN, origin)
    flat = traverse_util.flatten_dict(params, sep=SEPARATOR)
    names = {dtype: name for name, dtype in FLOATS.items()}
    specs = {name: TensorSpec(names[np.dtype(array.dtype)], array.shape) for name, array in flat.items()}
    write_shards(folder, specs, lambda name: jax.device_get(flat[name]), {"format": "flax"}, max_shard_size)
