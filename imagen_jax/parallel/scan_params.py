"""Names of stacked parameters: layers with equal shapes share one array, with a leading layer axis (scanned layers).

Code that treats a parameter by layer, to shard it or to use it as a matrix, has to skip that axis; the name marks it.
"""

from __future__ import annotations

import re

_STACKED = re.compile(r"_\d+_to_\d+/")


def stack_name(prefix: str, first: int, last: int) -> str:
    """Returns the name of stacked layers `first` to `last`, such as `down_1_blocks_1_to_7`."""
    return f"{prefix}_{first}_to_{last}"


def is_stacked(path: str) -> bool:
    """Returns whether the array at a path, such as `down_1_blocks_1_to_7/res/conv_0/kernel`, has a layer axis."""
    return bool(_STACKED.search(path))
