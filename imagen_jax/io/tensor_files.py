"""Safetensors files: their headers, and any part of their tensors. Nothing is unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open

from imagen_jax.errors import ConfigError
from imagen_jax.io.atomic import read_json, replacing, write_json
from imagen_jax.io.text import printable

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"  # which of several files has which tensor
_DIGEST_LENGTH = 12
_MAX_HEADER = 2**22  # bytes of a file's header; a T5's has less than 100,000
FLOATS = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(jnp.bfloat16),
    "F16": np.dtype(np.float16),
}  # in the order in which safetensors sorts tensors by their types
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


class TensorSpec(NamedTuple):
    """A tensor that a file has: its dtype in the notation of safetensors, one of `FLOATS`, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of the tensor."""
        return FLOATS[self.dtype].itemsize * math.prod(self.shape)


class TensorFiles:
    """The tensors of some files. The constructor reads headers, `read` a part of one tensor.

    Args:
        paths: the files, on a disk.

    Attributes:
        shapes: tensor name -> shape as stored.
        dtypes: tensor name -> dtype in the notation of safetensors, such as "BF16".
        metadata: file name -> the texts that a writer has put into its header.
        files: tensor name -> the name of its file.

    Raises:
        ConfigError: a file is damaged.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.metadata: dict[str, dict[str, str]] = {}
        for path in paths:
            with _open_safetensors(path) as file:
                self.metadata[path.name] = file.metadata() or {}
                for name in file.keys():  # noqa: SIM118  safe_open is not a mapping
                    stored = file.get_slice(name)
                    self._paths[name] = path
                    self.shapes[name], self.dtypes[name] = tuple(stored.get_shape()), stored.get_dtype()

    @property
    def files(self) -> dict[str, str]:
        """The name of the file that each tensor is in."""
        return {name: path.name for name, path in self._paths.items()}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Returns a part of one tensor, in its stored dtype and layout."""
        # reopened each time: pages read from a mapped file count as resident memory while it is open
        with _open_safetensors(self._paths[name]) as file:
            return file.get_slice(name)[index]


def mismatch_error(
    where: str | Path, problems: Sequence[str], most: int = 5, expected_by: str = "its config.json"
) -> ConfigError:
    """Returns the error for tensors that are not those that a config.json expects, which lists some of the problems."""
    more = f" and {len(problems) - most} more" if len(problems) > most else ""
    return ConfigError(f"the tensors in {where} do not fit {expected_by}: {'; '.join(problems[:most])}{more}")


def write_tensors(
    path: Path, specs: Mapping[str, TensorSpec], read: Callable[[str], np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file, atomically, with one tensor in memory at a time; the library takes all at once.

    The header follows from the specs, so that it is written first and each tensor after it. The bytes are those of the
    library for the same tensors.

    Args:
        path: the file, on a disk.
        specs: of the tensors by name.
        read: returns the tensor of a name, with the dtype and shape of its spec, in C order.
        metadata: texts for the header.

    Raises:
        OSError: the file cannot be written.
    """
    types = list(FLOATS)
    names = sorted(specs, key=lambda name: (types.index(specs[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name in names:
        dtype, shape = specs[name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + specs[name].nbytes]}
        start += specs[name].nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = read(name)
            assert (tensor.dtype, tensor.shape) == (FLOATS[specs[name].dtype], specs[name].shape), name
            file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)


def write_shards(
    folder: Path,
    specs: Mapping[str, TensorSpec],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, str],
    max_shard_size: int,
) -> None:
    """Writes tensors as `SINGLE_FILE`, or as several files and `INDEX_FILE`; see `write_tensors`.

    Args:
        folder: on a disk.
        specs: see `write_tensors`, as the following.
        read: of any of the tensors.
        metadata: of each file.
        max_shard_size: bytes of tensors in a file; a larger tensor has a file of its own.

    Raises:
        OSError: a file cannot be written.
    """
    split = split_state_dict_into_shards_factory(
        dict(specs),
        get_storage_size=lambda spec: spec.nbytes,
        filename_pattern=SINGLE_FILE.replace(".", "{suffix}.", 1),
        max_shard_size=max_shard_size,
    )
    for file, names in split.filename_to_tensors.items():
        write_tensors(folder / file, {name: specs[name] for name in names}, read, metadata)
    if split.is_sharded:
        write_json(folder / INDEX_FILE, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})


@contextlib.contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    """Opens a safetensors file.

    The library checks that offsets are within the file and do not overlap, and that sizes match shapes and dtypes.

    Raises:
        ConfigError: the file is damaged or cannot be read.
    """
    try:
        _check_header(path)
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} is not a complete safetensors file ({error}): copy it again") from error


def _check_header(path: Path) -> None:
    """Raises ConfigError if the header is longer than that of any model: parsing takes many times its size."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER:
        raise ConfigError(f"{path} declares a header of {length:,} bytes, more than {_MAX_HEADER:,}: copy it again")


def tensor_paths(folder: Path) -> list[Path]:
    """Returns model.safetensors, or the files that model.safetensors.index.json lists; [] if there is neither.

    Raises:
        ConfigError: the index is damaged, or lists files that are not in the folder.
    """
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.is_file():
        return [single]
    if not index.is_file():
        return []
    names = sorted(set(read_weight_map(index).values()))
    absent = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if absent:
        raise ConfigError(f"{index} names files that are not in {folder}: {', '.join(absent)}: copy them there")
    return [folder / name for name in names]


def read_weight_map(index: Path) -> dict[str, str]:
    """Returns the file name of each tensor in an index. Raises ConfigError if the index is damaged."""
    try:
        weight_map = read_json(index)["weight_map"]
        if not all(isinstance(name, str) for name in (*weight_map.keys(), *weight_map.values())):
            raise TypeError("weight_map is not of names")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{index} is not a safetensors index ({error!r}): copy it again") from error
    return weight_map


def pickle_files(names: Iterable[str]) -> list[str]:
    """Returns those of some files, by their names, that hold pickled weights, sorted."""
    return sorted(name for name in names if name.lower().endswith(_PICKLES))


def pickled_error(where: str | Path, pickled: Sequence[str], command: str) -> ConfigError:
    """Returns the error for weights that are pickled alone.

    Args:
        where: what has them.
        pickled: the names of their files.
        command: writes them again as safetensors, in an environment with torch.
    """
    return ConfigError(
        f"{where} has only pickled weights ({printable(', '.join(pickled[:3]))}), and unpickling can run code from the "
        f"file; if you trust its author, run once where torch is installed: {command}"
    )


def weights_digest(files: TensorFiles, names: Iterable[str]) -> str:
    """Returns what identifies weights, whatever file they are in: the start of a SHA-256 of some tensors as float32."""
    digest = hashlib.sha256()
    for name in names:
        tensor = files.read(name, tuple(map(slice, files.shapes[name])))
        digest.update(json.dumps([name, tensor.shape]).encode())
        digest.update(np.ascontiguousarray(tensor, "<f4").tobytes())
    return digest.hexdigest()[:_DIGEST_LENGTH]
