"""Reads and writes Hugging Face T5 folders: config.json and safetensors, as encoder fields and parameters.

`tensor_names` maps parameter paths to tensor names. Nothing is unpickled, and torch is not needed.
"""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors.numpy import save

from imagen_jax.errors import ConfigError
from imagen_jax.io import torch_layout
from imagen_jax.io.atomic import atomic_write, read_json, write_json
from imagen_jax.io.tensor_files import (
    INDEX_FILE,
    SINGLE_FILE,
    TensorFiles,
    pickle_files,
    pickled_error,
    tensor_paths,
)
from imagen_jax.models.t5 import T5Encoder
from imagen_jax.parallel.sharding import ParamPath, ReadSliceFn

# model_type -> default of feed_forward_proj, which config.json may omit. ByT5, flan and UL2 say "t5".
_MODEL_TYPES = {"t5": "relu", "mt5": "gated-gelu", "umt5": "gated-gelu"}
CONFIG_FIELDS = (
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
    "feed_forward_proj",
)
# defaults of transformers for fields that older config.json files omit
_CONFIG_DEFAULTS = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
}
_EMBEDDING = "shared.weight"
_EMBEDDING_ALIAS = "encoder.embed_tokens.weight"  # the same tensor again, or the only one in some encoder-only files
_RELATIVE_BIAS = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
_DECODER_PREFIXES = ("decoder.", "lm_head.")  # the rest of a complete T5


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the keyword fields of `T5Encoder` from a folder's config.json.

    Raises:
        ConfigError: the file is missing or damaged, or not that of a T5.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"{folder} has no config.json, expected a Hugging Face T5 folder: copy that file there")
    try:
        config = read_json(path)
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON ({error}): copy it again") from error
    model_type = config.get("model_type") if isinstance(config, dict) else type(config).__name__
    if model_type not in tuple(_MODEL_TYPES):
        raise ConfigError(f'{path} has model_type "{model_type}", expected one of {", ".join(_MODEL_TYPES)}: give a T5')
    given = _CONFIG_DEFAULTS | {"feed_forward_proj": _MODEL_TYPES[model_type]} | config
    absent = [name for name in CONFIG_FIELDS if name not in given]
    if absent:
        raise ConfigError(f"{path} lacks {', '.join(absent)}: copy the config.json that came with the weights")
    fields = {name: given[name] for name in CONFIG_FIELDS}
    for name, value in fields.items():
        if name != "feed_forward_proj" and not (isinstance(value, (int, float)) and value > 0):
            raise ConfigError(f"{path} has {name} {value!r}, expected a number above 0: copy it again")
    return fields | {"relative_bias_per_layer": model_type == "umt5"}


def tensor_names(encoder: T5Encoder) -> dict[ParamPath, str]:
    """Returns parameter path -> tensor name for the complete encoder."""
    names: dict[ParamPath, str] = {
        ("token_embedding", "embedding"): _EMBEDDING,
        ("final_norm", "scale"): "encoder.final_layer_norm.weight",
    }
    if not encoder.relative_bias_per_layer:
        names["relative_bias", "embedding"] = _RELATIVE_BIAS.format(0)
    gated = encoder.feed_forward_proj.startswith("gated-")
    for i in range(encoder.num_layers):
        attention, feed_forward = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        if encoder.relative_bias_per_layer:
            names[f"block_{i}_relative_bias", "embedding"] = _RELATIVE_BIAS.format(i)
        names[f"block_{i}_attention_norm", "scale"] = f"{attention}.layer_norm.weight"
        names[f"block_{i}_feed_forward_norm", "scale"] = f"{feed_forward}.layer_norm.weight"
        for matrix in "qkvo":
            names[f"block_{i}_attention", matrix, "kernel"] = f"{attention}.SelfAttention.{matrix}.weight"
        for matrix in ("wi_0", "wi_1", "wo") if gated else ("wi", "wo"):
            names[f"block_{i}_feed_forward", matrix, "kernel"] = f"{feed_forward}.DenseReluDense.{matrix}.weight"
    return names


def weight_files(folder: Path) -> list[Path]:
    """Returns model.safetensors, or the files that model.safetensors.index.json lists. Raises ConfigError."""
    paths = tensor_paths(folder)
    if paths:
        return paths
    pickled = pickle_files(path.name for path in folder.glob("*"))
    if pickled:
        raise pickled_error(folder, pickled, conversion_command(folder))
    raise ConfigError(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}: copy the weights there")


def conversion_command(folder: Path) -> str:
    """Returns the command that converts the pickled encoder in a folder to safetensors in the same folder."""
    name = json.dumps(str(folder), ensure_ascii=False)
    code = (
        f"from transformers import AutoModelForTextEncoding as T5; T5.from_pretrained({name}).save_pretrained({name})"
    )
    return f"python -c {shlex.quote(code)}"


def parameter_reader(folder: Path, encoder: T5Encoder, shapes: dict) -> ReadSliceFn:
    """Returns a function that reads any part of a parameter from the folder's files, in their dtype.

    Only the headers of the files are read before the function is called.

    Args:
        folder: a Hugging Face T5 folder.
        encoder: the module.
        shapes: its parameters as abstract arrays, a plain nested dict.

    Raises:
        ConfigError: files are missing or damaged, or their tensors do not match the encoder.
    """
    flat_shapes = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(shapes).items()}
    names = tensor_names(encoder)
    files = TensorFiles(weight_files(folder))
    if _EMBEDDING not in files.shapes and _EMBEDDING_ALIAS in files.shapes:
        names["token_embedding", "embedding"] = _EMBEDDING_ALIAS
    return torch_layout.parameter_reader(folder, files, names, flat_shapes, _is_other)


def _is_other(name: str) -> bool:
    """Returns whether a tensor is one of a complete T5 that its encoder does not need."""
    return name == _EMBEDDING_ALIAS or name.startswith(_DECODER_PREFIXES)


def save_folder(folder: Path, config: dict[str, Any], params: dict) -> None:
    """Writes an encoder over bytes as config.json, model.safetensors and tokenizer_config.json.

    transformers reads the folder with `T5EncoderModel.from_pretrained` and `AutoTokenizer.from_pretrained`.

    Args:
        folder: the folder to write.
        config: keyword fields of `T5Encoder`.
        params: its parameters; their dtype is kept.
    """
    encoder = T5Encoder(**config)
    flat = traverse_util.flatten_dict(params)
    tensors = {}
    for path, name in tensor_names(encoder).items():
        tensors[name] = np.ascontiguousarray(torch_layout.to_torch(path, np.asarray(flat[path])))
    # not save_file, which makes the file readable for its owner only
    atomic_write(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    metadata = {
        "architectures": ["UMT5EncoderModel" if encoder.relative_bias_per_layer else "T5EncoderModel"],
        "model_type": "umt5" if encoder.relative_bias_per_layer else "t5",
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "dropout_rate": 0.0,
    }
    fields = {name: getattr(encoder, name) for name in CONFIG_FIELDS}
    write_json(folder / "config.json", metadata | fields)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer"})
