"""A stored null text: an embedding [L, D] that replaces dropped captions, in a file beside a text encoder.

    ENCODER/null_text.safetensors    the tensor `null_text`, and the SHA-256 of its bytes

DeepFloyd IF's own code has such an array in the place of what T5 makes of the empty caption. The file belongs to the
encoder, so that whatever copies, verifies and identifies an encoder does so with it too, in sampling and in training.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from imagen_jax.errors import ConfigError, first_line
from imagen_jax.io.atomic import atomic_write
from imagen_jax.io.paths import as_path
from imagen_jax.io.tensor_files import FLOATS, TensorFiles
from imagen_jax.io.text import printable

FILE = "null_text.safetensors"
_TENSOR = "null_text"
_CHECKSUM = "sha256"  # in the header
_MAX_BYTES = 2**28


def load_array(name: str, shape: tuple[int, int]) -> np.ndarray:
    """Returns the null text in a file that a user gives.

    Args:
        name: of a file of `numpy.save`, or a safetensors file with one tensor.
        shape: (L, D), which the array has, or a batch of one.

    Raises:
        ConfigError: there is no such file, it is pickled, damaged or larger than 256 MiB, or its array has another
            shape, is not of floats, or has values that are not finite.
    """
    path, what = as_path(name), f"the null text {printable(name)!r}"
    if path.suffix not in (".npy", ".safetensors"):
        raise ConfigError(f"{what} is neither .npy nor .safetensors: give a file of numpy.save, or a safetensors file")
    if not path.is_file():
        raise ConfigError(f"{what} is not a file on this machine: give the path of the array")
    if path.stat().st_size > _MAX_BYTES:
        raise ConfigError(f"{what} has {path.stat().st_size:,} bytes, and a null text at most {_MAX_BYTES:,}")
    array = _load_npy(path, what) if path.suffix == ".npy" else _load_tensor(path, what)
    if array.dtype not in FLOATS.values():
        raise ConfigError(f"{what} has the dtype {array.dtype}, and a null text is of floats: save it as float32")
    if array.shape not in (shape, (1, *shape)):
        raise ConfigError(
            f"{what} has the shape {list(array.shape)}, and the text of the pipeline is {list(shape)}, tokens and "
            "width: give the array of this pipeline"
        )
    if not np.isfinite(array.astype(np.float32)).all():
        raise ConfigError(f"{what} has values that are not finite in float32: save the array again")
    return array.reshape(shape)


def _load_npy(path: Path, what: str) -> np.ndarray:
    try:
        # mapped, so that a header with a wrong shape allocates nothing; it reads neither pickles nor archives
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # whatever NumPy's parser of headers raises
        raise ConfigError(
            f"{what} is not an array of numbers that numpy.save has written ({printable(first_line(error))[:200]}); "
            "pickled objects are not read, as unpickling can run code: save it again, numpy.save(FILE, ARRAY)"
        ) from error
    return np.array(array, array.dtype.newbyteorder("="), order="C")


def _load_tensor(path: Path, what: str) -> np.ndarray:
    files = TensorFiles([path])
    if len(files.shapes) != 1:
        raise ConfigError(f"{what} has {len(files.shapes)} tensors: give a file with one, the null text")
    array = _read(files, next(iter(files.shapes)))
    return array.astype(np.float32) if array.dtype == FLOATS["BF16"] else array


def write_null_text(folder: Path, array: np.ndarray) -> None:
    """Writes a null text [L, D] of floats into the folder of an encoder or a cache. Raises OSError."""
    # the library writes several texts in a random order, and the file is part of the encoder's fingerprint
    atomic_write(folder / FILE, save({_TENSOR: array}, {_CHECKSUM: _digest(array)}))


def read_null_text(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Returns the null text in a file of `write_null_text`, float32 [L, D].

    Args:
        path: the file.
        shape: (L, D) of the text that a stage reads.

    Raises:
        ConfigError: it is missing, damaged or of another shape.
    """
    if not path.is_file():
        raise ConfigError(
            f"diffusion.null_text is 'stored', and {path.parent} has no {FILE}: set text.model to the text encoder of "
            "a cascade that was converted with --null_text, or diffusion.null_text to 'empty'"
        )
    files = TensorFiles([path])
    stored = files.shapes.get(_TENSOR)
    if stored is None or files.dtypes[_TENSOR] not in FLOATS:
        raise ConfigError(f"{path} has no tensor {_TENSOR} of floats: copy it again")
    array = _read(files, _TENSOR)
    if _digest(array) != files.metadata[path.name].get(_CHECKSUM):
        raise ConfigError(f"{path} is damaged, its checksum is another one: copy it again")
    if stored != shape:
        raise ConfigError(
            f"{path} has the shape {list(stored)}, and the stage reads text of {list(shape)}, tokens and width: set "
            f"text.length to {stored[0]}, or diffusion.null_text to 'empty'"
        )
    return array.astype(np.float32)


def _read(files: TensorFiles, name: str) -> np.ndarray:
    return np.ascontiguousarray(files.read(name, tuple(slice(0, size) for size in files.shapes[name])))


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()
