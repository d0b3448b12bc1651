"""Names and layouts of the U-Net's tensors: in diffusers' files, and as the parameters of `IFUNet`.

Torch has kernels of dense layers as [out, in] and of convolutions as [out, in, height, width]; Flax as [in, out] and
[height, width, in, out].
"""

from __future__ import annotations

import re

import numpy as np

# modules in lists have numbers in their names, which are those of one module here
_BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.")
_MIDDLE = re.compile(r"(mid_block)\.(resnets|attentions)\.(\d+)\.")
_BLOCK_PATH = re.compile(r"(down_blocks|up_blocks)_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)")
_MIDDLE_PATH = re.compile(r"(mid_block)_(resnets|attentions)_(\d+)")
_OUT = "to_out.0.", "to_out_0."
_LEAVES = {"kernel": "weight", "scale": "weight"}


def parameter_path(name: str, rank: int) -> tuple[str, ...]:
    """Returns the path of the parameter that is the tensor of a name, which has so many axes."""
    name = _BLOCK.sub(r"\1_\2_\3_\4.", name)
    name = _MIDDLE.sub(r"\1_\2_\3.", name).replace(*_OUT)
    *modules, leaf = name.split(".")
    if leaf == "weight":
        leaf = "kernel" if rank > 1 else "scale"
    return (*modules, leaf)


def tensor_name(path: tuple[str, ...]) -> str:
    """Returns the name of the tensor that is the parameter at a path; the inverse of `parameter_path`."""
    *modules, leaf = path
    name = ".".join([*modules, _LEAVES.get(leaf, leaf)])
    name = _BLOCK_PATH.sub(r"\1.\2.\3.\4", name)
    return _MIDDLE_PATH.sub(r"\1.\2.\3", name).replace(*_OUT[::-1])


def stored_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of the tensor that is a parameter of a shape."""
    if path[-1] != "kernel":
        return shape
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def from_torch(path: tuple[str, ...], tensor: np.ndarray) -> np.ndarray:
    """Returns a tensor in the layout of the parameter, a view."""
    if path[-1] != "kernel":
        return tensor
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def to_torch(path: tuple[str, ...], parameter: np.ndarray) -> np.ndarray:
    """Returns a parameter in the layout of the tensor, a view; the inverse of `from_torch`."""
    if path[-1] != "kernel":
        return parameter
    return parameter.transpose(3, 2, 0, 1) if parameter.ndim == 4 else parameter.T
