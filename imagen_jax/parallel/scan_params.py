"""Names of stacked parameters: one array for layers that are alike, with an axis in front that counts them.

A network whose parameters are so repeats one layer, and its program is shorter. Who asks what a parameter is to one
layer, to split it or to see it as a matrix, has to know of that axis; the name tells.
"""

from __future__ import annotations

import re

STACKED = re.compile(r"_\d+_to_\d+/")


def stack_name(prefix: str, first: int, last: int) -> str:
    """The name of layers ``first`` to ``last``, such as ``down_1_blocks_1_to_7``; their parameters are stacked."""
    return f"{prefix}_{first}_to_{last}"


def is_stacked(path: str) -> bool:
    """Whether what has a path, such as ``down_1_blocks_1_to_7/res/conv_0/kernel``, has an axis of layers in front."""
    return bool(STACKED.search(path))
