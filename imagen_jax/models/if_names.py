"""Names of the U-Net's tensors: in diffusers' files, and as the parameters of `IFUNet`.

Their layouts are those of `io.torch_layout`.
"""

from __future__ import annotations

import re

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
