"""Hugging Face T5 folders: config.json and safetensors to encoder fields and parameters, and back.

The two ends are `tensor_names`, which pairs parameter paths with tensor names, and `TensorFiles`, which reads parts of
tensors. Nothing is unpickled, and torch is not needed.
"""

import contextlib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from imagen_jax.errors import ConfigError
from imagen_jax.io.atomic import read_json, write_json, write_whole
from imagen_jax.models.t5 import T5Encoder
from imagen_jax.parallel.sharding import Index, ParameterPath, ReadPart

# model_type -> the feed_forward_proj that its config.json may leave out. ByT5, flan and UL2 say "t5".
MODEL_TYPES = {"t5": "relu", "mt5": "gated-gelu", "umt5": "gated-gelu"}
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
# what transformers takes for other fields that older config.json files leave out
CONFIG_DEFAULTS = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
}
MAX_HEADER = 2**22  # bytes of a safetensors file's header; a T5's has less than 100,000
FLOATS = ("F64", "F32", "F16", "BF16")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
NAMED = 5  # tensors that a refusal names
EMBEDDING = "shared.weight"
EMBEDDING_COPY = "encoder.embed_tokens.weight"  # the same tensor again, or the only one in some encoder-only files
RELATIVE_BIAS = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
DECODER_PREFIXES = ("decoder.", "lm_head.")  # the rest of a whole T5


def read_config(folder: Path) -> dict[str, Any]:
    """The keyword fields of `T5Encoder` from a folder's config.json.

    Raises UsageError when the file is missing or broken, or is not that of a T5.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"{folder} has no config.json, expected a Hugging Face T5 folder: copy that file there")
    try:
        config = read_json(path)
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON ({error}): copy it again") from error
    found = config.get("model_type") if isinstance(config, dict) else type(config).__name__
    if found not in tuple(MODEL_TYPES):
        raise ConfigError(f'{path} says model_type is "{found}", expected one of {", ".join(MODEL_TYPES)}: give a T5')
    given = CONFIG_DEFAULTS | {"feed_forward_proj": MODEL_TYPES[found]} | config
    absent = [name for name in CONFIG_FIELDS if name not in given]
    if absent:
        raise ConfigError(f"{path} lacks {', '.join(absent)}: copy the config.json that came with the weights")
    fields = {name: given[name] for name in CONFIG_FIELDS}
    for name, value in fields.items():
        if name != "feed_forward_proj" and not (isinstance(value, (int, float)) and value > 0):
            raise ConfigError(f"{path} says {name} is {value!r}, expected a number above 0: copy it again")
    return fields | {"relative_bias_per_layer": found == "umt5"}


def tensor_names(encoder: T5Encoder) -> dict[ParameterPath, tuple[str, bool]]:
    """Parameter path -> (tensor name, whether the tensor is stored transposed), for the whole encoder.

    Hugging Face stores matrices as [out, in], Flax as [in, out].
    """
    names: dict[ParameterPath, tuple[str, bool]] = {
        ("token_embedding", "embedding"): (EMBEDDING, False),
        ("final_norm", "scale"): ("encoder.final_layer_norm.weight", False),
    }
    if not encoder.relative_bias_per_layer:
        names["relative_bias", "embedding"] = (RELATIVE_BIAS.format(0), False)
    gated = encoder.feed_forward_proj.startswith("gated-")
    for i in range(encoder.num_layers):
        attention, feed_forward = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        if encoder.relative_bias_per_layer:
            names[f"block_{i}_relative_bias", "embedding"] = (RELATIVE_BIAS.format(i), False)
        names[f"block_{i}_attention_norm", "scale"] = (f"{attention}.layer_norm.weight", False)
        names[f"block_{i}_feed_forward_norm", "scale"] = (f"{feed_forward}.layer_norm.weight", False)
        for matrix in "qkvo":
            names[f"block_{i}_attention", matrix, "kernel"] = (f"{attention}.SelfAttention.{matrix}.weight", True)
        for matrix in ("wi_0", "wi_1", "wo") if gated else ("wi", "wo"):
            names[f"block_{i}_feed_forward", matrix, "kernel"] = (
                f"{feed_forward}.DenseReluDense.{matrix}.weight",
                True,
            )
    return names


class TensorFiles:
    """The safetensors files of a folder, one or many. Making one reads their headers, `read` a part of one tensor.

    shapes: tensor name -> shape as stored
    dtypes: tensor name -> dtype as safetensors writes it, such as "BF16"
    Raises UsageError when there are no such files, when one is broken, or when only pickled weights lie there.
    """

    def __init__(self, folder: Path) -> None:
        self._paths: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for path in weight_files(folder):
            with opened(path) as file:
                for name in file.keys():  # noqa: SIM118  safe_open is no mapping
                    stored = file.get_slice(name)
                    self._paths[name] = path
                    self.shapes[name], self.dtypes[name] = tuple(stored.get_shape()), stored.get_dtype()

    def read(self, name: str, index: Index) -> np.ndarray:
        """A part of one tensor, in its stored dtype and layout."""
        # opened anew each time: what has been read of a mapped file counts as our memory for as long as it is open
        with opened(self._paths[name]) as file:
            return file.get_slice(name)[index]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file. Raises UsageError when it is broken or cannot be read.

    That offsets are within the file and do not overlap, and that each tensor has the bytes of its shape and dtype, the
    library checks.
    """
    try:
        check_header(path)
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} is not a whole safetensors file ({error}): copy it again") from error


def check_header(path: Path) -> None:
    """Raises UsageError for a header that is longer than any encoder's: it is parsed in memory, many times its size."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER:
        raise ConfigError(f"{path} says its header has {length:,} bytes, more than {MAX_HEADER:,}: copy it again")


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the files that model.safetensors.index.json names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ConfigError(f"{index} is not a safetensors index ({error!r}): copy it again") from error
        absent = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
        if absent:
            raise ConfigError(f"{index} names files that are not in {folder}: {', '.join(absent)}: copy them there")
        return [folder / name for name in names]
    pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickled:
        raise ConfigError(
            f"{folder} has only pickled weights ({', '.join(pickled)}), expected safetensors: unpickling runs code from"
            f" the file, so where torch is installed and you trust its author, once run: {conversion(folder)}"
        )
    raise ConfigError(
        f"{folder} has neither model.safetensors nor model.safetensors.index.json: copy the weights there"
    )


def conversion(folder: Path) -> str:
    """The command that writes the encoder of a folder of pickled weights beside them as safetensors."""
    name = json.dumps(str(folder), ensure_ascii=False)
    code = (
        f"from transformers import AutoModelForTextEncoding as T5; T5.from_pretrained({name}).save_pretrained({name})"
    )
    return f"python -c {shlex.quote(code)}"


def check_tensors(folder: Path, files: TensorFiles, wanted: dict[str, tuple[int, ...]]) -> None:
    """Raise UsageError that names missing, surplus, misshapen and quantised tensors; a decoder beside is fine."""
    faults = [f"missing {name}" for name in wanted if name not in files.shapes]
    for name, shape in files.shapes.items():
        if name not in wanted:
            if name != EMBEDDING_COPY and not name.startswith(DECODER_PREFIXES):
                faults.append(f"surplus {name}")
        elif shape != wanted[name]:
            faults.append(f"{name} is {list(shape)}, expected {list(wanted[name])}")
        elif files.dtypes[name] not in FLOATS:
            faults.append(f"{name} is stored as {files.dtypes[name]}, expected one of {', '.join(FLOATS)}")
    if faults:
        more = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise ConfigError(f"the tensors in {folder} do not fit its config.json: {'; '.join(faults[:NAMED])}{more}")


def parameter_reader(folder: Path, encoder: T5Encoder, shapes: dict) -> ReadPart:
    """A function that reads any part of a parameter of the encoder from the folder's files, in their dtype.

    shapes: the parameter tree as `jax.eval_shape` gives it
    Raises UsageError as `TensorFiles` and `check_tensors` do; only headers have been read then.
    """
    flat_shapes = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(shapes).items()}
    names = tensor_names(encoder)
    files = TensorFiles(folder)
    if EMBEDDING not in files.shapes and EMBEDDING_COPY in files.shapes:
        names["token_embedding", "embedding"] = (EMBEDDING_COPY, False)
    wanted = {name: flat_shapes[path][::-1] if flip else flat_shapes[path] for path, (name, flip) in names.items()}
    check_tensors(folder, files, wanted)

    def read(path: ParameterPath, index: Index) -> np.ndarray:
        name, flip = names[path]
        return files.read(name, index[::-1]).T if flip else files.read(name, index)

    return read


def save_folder(folder: Path, config: dict[str, Any], params: dict) -> None:
    """Write an encoder over bytes as config.json, model.safetensors and tokenizer_config.json.

    config: the keyword fields of `T5Encoder`
    params: its parameters; their dtype is kept
    transformers' `T5EncoderModel.from_pretrained` and `AutoTokenizer.from_pretrained` read the folder.
    """
    encoder = T5Encoder(**config)
    flat = traverse_util.flatten_dict(params)
    tensors = {}
    for path, (name, flip) in tensor_names(encoder).items():
        array = np.asarray(flat[path])
        tensors[name] = np.ascontiguousarray(array.T if flip else array)
    # written by ourselves: save_file lets nobody but the user read the file
    write_whole(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    about = {
        "architectures": ["UMT5EncoderModel" if encoder.relative_bias_per_layer else "T5EncoderModel"],
        "model_type": "umt5" if encoder.relative_bias_per_layer else "t5",
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "dropout_rate": 0.0,
    }
    fields = {name: getattr(encoder, name) for name in CONFIG_FIELDS}
    write_json(folder / "config.json", about | fields)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer"})
