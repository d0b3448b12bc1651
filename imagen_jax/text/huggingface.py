"""Hugging Face T5 folders: config.json and safetensors to encoder fields and parameters, and back.

The two ends are `tensor_names`, which pairs parameter paths with tensor names, and `TensorFiles`, which reads one
tensor at a time. Whatever places parameters differently (sharded over devices, say) needs only these two.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from imagen_jax.errors import UsageError

ParamPath = tuple[str, ...]

MODEL_TYPES = ("t5", "mt5")  # mt5 and ByT5 are T5 v1.1 encoders with other vocabularies
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
# what T5Config takes for fields that older config.json files leave out
CONFIG_DEFAULTS = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
}
EMBEDDING = "shared.weight"
EMBEDDING_COPY = "encoder.embed_tokens.weight"  # the same tensor again, or the only one in some encoder-only files
DECODER_PREFIXES = ("decoder.", "lm_head.")  # the rest of a whole T5


def read_config(folder: Path) -> dict[str, Any]:
    """The keyword fields of `T5Encoder` from a folder's config.json.

    Raises UsageError when the file is missing or broken, or is not that of a T5 v1.1.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UsageError(f"{folder} has no config.json, expected a Hugging Face T5 folder: copy that file there")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON ({error}): copy it again") from error
    if not isinstance(config, dict) or config.get("model_type") not in MODEL_TYPES:
        found = config.get("model_type") if isinstance(config, dict) else type(config).__name__
        raise UsageError(f'{path} says model_type is "{found}", expected one of {MODEL_TYPES}: give a T5 v1.1 folder')
    fields = CONFIG_DEFAULTS | {name: config[name] for name in CONFIG_FIELDS if name in config}
    absent = [name for name in CONFIG_FIELDS if name not in fields]
    if absent:
        raise UsageError(f"{path} lacks {', '.join(absent)}: copy the config.json that came with the weights")
    if fields["feed_forward_proj"] != "gated-gelu":
        raise UsageError(
            f'{path} says feed_forward_proj is "{fields["feed_forward_proj"]}", expected "gated-gelu":'
            " give T5 v1.1 weights (t5-v1_1, flan-t5 or byt5), not those of the first T5"
        )
    return fields


def tensor_names(num_layers: int) -> dict[ParamPath, tuple[str, bool]]:
    """Parameter path -> (tensor name, whether the tensor is stored transposed), for the whole encoder.

    Hugging Face stores matrices as [out, in], Flax as [in, out].
    """
    names: dict[ParamPath, tuple[str, bool]] = {
        ("token_embedding", "embedding"): (EMBEDDING, False),
        ("relative_bias", "embedding"): (
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            False,
        ),
        ("final_norm", "scale"): ("encoder.final_layer_norm.weight", False),
    }
    for i in range(num_layers):
        attention, feed_forward = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        names[f"block_{i}_attention_norm", "scale"] = (f"{attention}.layer_norm.weight", False)
        names[f"block_{i}_feed_forward_norm", "scale"] = (f"{feed_forward}.layer_norm.weight", False)
        for matrix in "qkvo":
            names[f"block_{i}_attention", matrix, "kernel"] = (f"{attention}.SelfAttention.{matrix}.weight", True)
        for matrix in ("wi_0", "wi_1", "wo"):
            names[f"block_{i}_feed_forward", matrix, "kernel"] = (
                f"{feed_forward}.DenseReluDense.{matrix}.weight",
                True,
            )
    return names


class TensorFiles:
    """The safetensors files of a folder, one or many. Opening reads their headers, `read` one tensor.

    shapes: tensor name -> shape as stored
    Raises UsageError when there are no such files, when one is broken, or when only pickled weights lie there.
    """

    def __init__(self, folder: Path) -> None:
        self._files = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in weight_files(folder):
            try:
                file = safe_open(path, framework="numpy")
            except (SafetensorError, OSError) as error:
                raise UsageError(f"{path} is not a whole safetensors file ({error}): copy it again") from error
            for name in file.keys():  # noqa: SIM118  safe_open is no mapping
                self._files[name] = file
                self.shapes[name] = tuple(file.get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """One tensor in its stored dtype and layout."""
        return self._files[name].get_tensor(name)


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the files that model.safetensors.index.json names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UsageError(f"{index} is not a safetensors index ({error!r}): copy it again") from error
        absent = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
        if absent:
            raise UsageError(f"{index} names files that are not in {folder}: {', '.join(absent)}: copy them there")
        return [folder / name for name in names]
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl") for path in folder.glob(pattern))
    if pickled:
        raise UsageError(
            f"{folder} has only pickled weights ({', '.join(pickled)}), expected safetensors: unpickling runs code from"
            " the file, so convert it once with transformers and torch:"
            " T5EncoderModel.from_pretrained(folder).save_pretrained(new_folder)"
        )
    raise UsageError(f"{folder} has neither model.safetensors nor model.safetensors.index.json: copy the weights there")


def check_tensors(folder: Path, stored: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    """Raise UsageError listing every missing, surplus or misshapen tensor; a decoder beside the encoder is fine."""
    faults = [f"missing {name}" for name in wanted if name not in stored]
    for name, shape in stored.items():
        if name in wanted and shape != wanted[name]:
            faults.append(f"{name} is {list(shape)}, expected {list(wanted[name])}")
        elif name not in wanted and name != EMBEDDING_COPY and not name.startswith(DECODER_PREFIXES):
            faults.append(f"surplus {name}")
    if faults:
        raise UsageError(f"the tensors in {folder} do not fit its config.json: {'; '.join(faults)}")


def load_params(folder: Path, shapes: dict, num_layers: int, dtype: Any) -> dict:
    """Parameters of `T5Encoder` as host arrays of `dtype`, read one tensor at a time.

    shapes: the parameter tree as `jax.eval_shape` gives it for the folder's config
    Raises UsageError as `TensorFiles` and `check_tensors` do.
    """
    flat_shapes = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(shapes).items()}
    names = tensor_names(num_layers)
    files = TensorFiles(folder)
    if EMBEDDING not in files.shapes and EMBEDDING_COPY in files.shapes:
        names["token_embedding", "embedding"] = (EMBEDDING_COPY, False)
    wanted = {name: flat_shapes[path][::-1] if flip else flat_shapes[path] for path, (name, flip) in names.items()}
    check_tensors(folder, files.shapes, wanted)
    params = {}
    for path, (name, flip) in names.items():
        tensor = files.read(name)
        params[path] = np.ascontiguousarray(tensor.T if flip else tensor).astype(dtype)
    return traverse_util.unflatten_dict(params)


def save_folder(folder: Path, config: dict[str, Any], params: dict) -> None:
    """Write an encoder over bytes as config.json, model.safetensors and tokenizer_config.json.

    config: the keyword fields of `T5Encoder`
    params: its parameters; their dtype is kept
    transformers' `T5EncoderModel.from_pretrained` and `AutoTokenizer.from_pretrained` read the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flat = traverse_util.flatten_dict(params)
    tensors = {}
    for path, (name, flip) in tensor_names(config["num_layers"]).items():
        array = np.asarray(flat[path])
        tensors[name] = np.ascontiguousarray(array.T if flip else array)
    # written by ourselves: save_file lets nobody but the user read the file
    (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    about = {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "dropout_rate": 0.0,
    }
    fields = {name: config[name] for name in CONFIG_FIELDS}
    (folder / "config.json").write_text(json.dumps(about | fields, indent=2) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}, indent=2) + "\n")
