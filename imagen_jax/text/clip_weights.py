"""Reads Hugging Face CLIP folders: config.json and safetensors, as towers and their parameters.

Nothing is unpickled, and torch is not needed.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from imagen_jax.errors import ConfigError
from imagen_jax.io.atomic import read_json
from imagen_jax.io.tensor_files import INDEX_FILE, SINGLE_FILE, pickle_files, pickled_error, tensor_paths
from imagen_jax.models.clip import CLIPTextTower, CLIPVisionTower
from imagen_jax.parallel.sharding import ParamPath

BOTH, VISION = "clip", "clip_vision_model"  # values of model_type
# defaults of transformers for fields that a config.json may omit
_SHARED_DEFAULTS = {"projection_dim": 512, "num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_VISION_DEFAULTS = _SHARED_DEFAULTS | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
}
_TEXT_DEFAULTS = _SHARED_DEFAULTS | {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
_NOT_COUNTS = ("hidden_act", "layer_norm_eps")
_LAYER = re.compile(r"layers_(\d+)")
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
# modules that have other names in transformers, whose first is misspelled there
_MODULES = {"pre_norm": "pre_layrnorm", "post_norm": "post_layernorm", "final_norm": "final_layer_norm"}
_EMBEDDINGS = {
    ("class_embedding",): "class_embedding",
    ("patch_embedding", "kernel"): "patch_embedding.weight",
    ("token_embedding", "embedding"): "token_embedding.weight",
    ("position_embedding",): "position_embedding.weight",
}
_UNUSED = re.compile(r"logit_scale|(.+\.)?position_ids")  # the scale of the training loss, and 0, 1, 2, …


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the content of a folder's config.json.

    Raises:
        ConfigError: the file is missing or damaged, or not that of a CLIP, or of its image tower.
    """
    path = folder / "config.json"
    try:
        config = read_json(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} has no config.json, expected a Hugging Face CLIP folder: copy it there") from error
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} is not valid JSON ({error}): copy it again") from error
    model_type = config.get("model_type") if isinstance(config, dict) else type(config).__name__
    if model_type not in (BOTH, VISION):
        raise ConfigError(f'{path} has model_type "{model_type}", expected {BOTH} or {VISION}: give a CLIP')
    return config


def vision_tower(config: Mapping[str, Any], folder: Path, projection_dim: int | None = None) -> CLIPVisionTower:
    """Returns the image tower of a config.json, that of a CLIP or of its image tower alone.

    Args:
        config: from `read_config`.
        folder: for messages.
        projection_dim: in place of the tower's own; None for that.

    Raises:
        ConfigError: a field has a value that does not work.
    """
    given = config if config["model_type"] == VISION else _sub_config(config, "vision_config", folder)
    fields = _fields(given, _VISION_DEFAULTS, folder)
    if projection_dim is not None:
        fields["projection_dim"] = projection_dim
    if fields["image_size"] < fields["patch_size"]:
        raise ConfigError(
            f"{folder / 'config.json'} has image_size {fields['image_size']}, less than its patch_size "
            f"{fields['patch_size']}: copy it again"
        )
    return _build(CLIPVisionTower, fields, folder)


def towers(config: Mapping[str, Any], folder: Path) -> tuple[CLIPVisionTower, CLIPTextTower | None]:
    """Returns the towers of a config.json; no text tower for that of an image tower alone. Raises ConfigError."""
    if config["model_type"] == VISION:
        return vision_tower(config, folder), None
    width = config.get("projection_dim", _SHARED_DEFAULTS["projection_dim"])
    fields = _fields(_sub_config(config, "text_config", folder) | {"projection_dim": width}, _TEXT_DEFAULTS, folder)
    return vision_tower(config, folder, fields["projection_dim"]), _build(CLIPTextTower, fields, folder)


def _build(tower: Any, fields: Mapping[str, Any], folder: Path) -> Any:
    """Returns a tower of some fields. Raises ConfigError."""
    try:
        return tower(**fields)
    except ConfigError as error:
        raise ConfigError(f"{folder / 'config.json'}: {error}") from error


def _sub_config(config: Mapping[str, Any], name: str, folder: Path) -> dict[str, Any]:
    """Returns the config of a tower; older files have it a second time, and that counts as a full one."""
    given = config.get(f"{name}_dict") or config.get(name) or {}
    if not isinstance(given, dict):
        raise ConfigError(f"{folder / 'config.json'} has {name} {given!r:.80}, expected an object: copy it again")
    return given


def _fields(given: Mapping[str, Any], defaults: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the keyword fields of a tower. Raises ConfigError."""
    fields = {name: given.get(name, default) for name, default in defaults.items()}
    for name, value in fields.items():
        is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
        is_number = name == "layer_norm_eps" and isinstance(value, float) and value > 0
        if name != "hidden_act" and not is_count and not is_number:
            raise ConfigError(
                f"{folder / 'config.json'} has {name} {value!r}, expected a number above 0: copy it again"
            )
    return fields


def parameter_shapes(tower: CLIPVisionTower | CLIPTextTower, dtype: Any = jnp.float32) -> dict:
    """Returns the parameters of a tower as abstract arrays, a plain nested dict."""
    if isinstance(tower, CLIPVisionTower):
        inputs = jnp.zeros((1, tower.image_size, tower.image_size, tower.num_channels))
    else:
        inputs = jnp.zeros((1, tower.max_position_embeddings), jnp.int32)
    shapes = jax.eval_shape(tower.init, jax.random.key(0), inputs)["params"]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)


def tensor_names(shapes: Mapping[str, Any], tower: str, prefix: str = "") -> dict[ParamPath, str]:
    """Returns the tensor name of each parameter of a tower.

    Args:
        shapes: the parameters, see `parameter_shapes`.
        tower: "vision" or "text".
        prefix: of all names, such as "vision_model." where the model is a part of another.
    """
    return {path: prefix + _tensor_name(path, tower) for path in traverse_util.flatten_dict(dict(shapes))}


def _tensor_name(path: ParamPath, tower: str) -> str:
    if path in _EMBEDDINGS:
        return f"{tower}_model.embeddings.{_EMBEDDINGS[path]}"
    *modules, leaf = path
    if modules == ["projection"]:
        return f"{'visual' if tower == 'vision' else 'text'}_projection.weight"
    first = _LAYER.sub(r"encoder.layers.\1", _MODULES.get(modules[0], modules[0]))
    return ".".join([f"{tower}_model", first, *modules[1:], _LEAVES.get(leaf, leaf)])


def is_unused(name: str) -> bool:
    """Returns whether a tensor of a CLIP is one that no tower needs."""
    return _UNUSED.fullmatch(name) is not None


def weight_files(folder: Path, repo: str = "", names: Iterable[str] = ()) -> list[Path]:
    """Returns model.safetensors, or the files that model.safetensors.index.json lists.

    Args:
        folder: on a disk.
        repo: the repository on the Hub that the folder is a copy of; "" for none.
        names: of all files of the repository.

    Raises:
        ConfigError: there are none; it says how to make them of pickled weights.
    """
    paths = tensor_paths(folder)
    if paths:
        return paths
    where = repo or str(folder)
    pickled = pickle_files({*names, *(path.name for path in folder.glob("*"))})
    if not pickled:
        raise ConfigError(f"{where} has neither {SINGLE_FILE} nor {INDEX_FILE}: copy the weights there")
    new = repo.rpartition("/")[2] if repo else where
    old, new = (json.dumps(text, ensure_ascii=False) for text in (where, new))
    code = f"from transformers import AutoModel as M; M.from_pretrained({old}).save_pretrained({new})"
    raise pickled_error(where, pickled, f"python -c {shlex.quote(code)}")
