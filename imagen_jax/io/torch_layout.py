"""Tensors of torch's modules in safetensors files, as parameters of Flax's modules.

Torch has kernels of dense layers as [out, in] and of convolutions as [out, in, height, width]; Flax as [in, out] and
[height, width, in, out]. A parameter's path, keys from the root of the tree, ends in `kernel` for these two alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.io.tensor_files import FLOATS, TensorFiles, mismatch_error
from imagen_jax.io.text import printable

_ParamPath = tuple[str, ...]


def stored_shape(path: _ParamPath, shape: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the shape of the tensor that is a parameter of a shape; likewise the index of a part of it."""
    if path[-1] != "kernel":
        return shape
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def from_torch(path: _ParamPath, tensor: np.ndarray) -> np.ndarray:
    """Returns a tensor in the layout of the parameter, a view."""
    if path[-1] != "kernel":
        return tensor
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def to_torch(path: _ParamPath, parameter: np.ndarray) -> np.ndarray:
    """Returns a parameter in the layout of the tensor, a view; the inverse of `from_torch`."""
    if path[-1] != "kernel":
        return parameter
    return parameter.transpose(3, 2, 0, 1) if parameter.ndim == 4 else parameter.T


def parameter_reader(
    where: str | Path,
    files: TensorFiles,
    names: Mapping[_ParamPath, str],
    shapes: Mapping[_ParamPath, tuple[int, ...]],
    is_other: Callable[[str], bool],
    expected_by: str = "its config.json",
) -> Callable[[_ParamPath, tuple[slice, ...]], np.ndarray]:
    """Returns a function that reads any part of a parameter, in the dtype of its tensor.

    Args:
        where: the folder, for messages.
        files: the tensors.
        names: of the tensor of each parameter.
        shapes: of each parameter.
        is_other: whether a tensor, by its name, belongs to what is not read.
        expected_by: what the tensors have to fit, for messages.

    Raises:
        ConfigError: tensors are missing, left over, of other shapes, or not floats.
    """
    expected = {names[path]: stored_shape(path, shape) for path, shape in shapes.items()}
    problems = [f"missing {name}" for name in expected if name not in files.shapes]
    for name, shape in files.shapes.items():
        if name not in expected:
            if not is_other(name):
                problems.append(f"unexpected {printable(name)} in {files.files[name]}")
        elif shape != expected[name]:
            problems.append(f"{name} is {list(shape)}, expected {list(expected[name])}")
        elif files.dtypes[name] not in FLOATS:
            problems.append(f"{name} is stored as {files.dtypes[name]}, expected one of {', '.join(FLOATS)}")
    if problems:
        raise mismatch_error(where, problems, expected_by=expected_by)

    def read(path: _ParamPath, index: tuple[slice, ...]) -> np.ndarray:
        return from_torch(path, files.read(names[path], stored_shape(path, index)))

    return read
