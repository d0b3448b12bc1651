"""Names of the axes of arrays. Arrays are sharded by these names, not by their number of axes.

The names of an array's axes are one string, such as "batch rows columns channels", because a string is a leaf of a
pytree. "..." at the end stands for any number of further axes, which are never sharded.
"""

from __future__ import annotations

from typing import Any

import jax

Axes = str

AXIS_NAMES = frozenset({"batch", "time", "rows", "columns", "channels", "tokens"})
VECTOR = "batch"
IMAGE = "batch rows columns channels"
TOKENS = "batch tokens"
TEXT = "batch tokens channels"


def axis_names(axes: Axes, ndim: int | None = None) -> tuple[str, ...]:
    """Returns the names of an array's axes, without those that "..." stands for.

    Args:
        axes: the names.
        ndim: number of axes of the array; None if it is not known.

    Raises:
        ValueError: a name is unknown or there twice, or there are more or fewer names than axes.
    """
    names = tuple(axes.removesuffix("...").split())
    if not set(names) <= AXIS_NAMES or len(set(names)) < len(names):
        raise ValueError(f"axes {axes!r} are not different names of {', '.join(sorted(AXIS_NAMES))}")
    if ndim is not None and (ndim < len(names) if axes.endswith("...") else ndim != len(names)):
        raise ValueError(f"an array with {ndim} axes cannot have the axes {axes!r}")
    return names


def find_axes(declared: Any, path: tuple[Any, ...]) -> Axes:
    """Returns the axes of the leaf at a path of `jax.tree_util`.

    Args:
        declared: axes for all leaves, or a pytree of axes: its entries and fields are those of the pytree in which the
            leaf is, which may lack some of them.
        path: the leaf's path.

    Raises:
        ValueError: no axes are declared for the leaf.
    """
    for key in path:
        if isinstance(declared, Axes):
            break
        try:
            declared = getattr(declared, key.name) if hasattr(key, "name") else declared[_entry(key)]
        except (AttributeError, LookupError) as error:
            raise ValueError(f"no axes are declared for {jax.tree_util.keystr(path)}") from error
    return declared


def _entry(key: Any) -> Any:
    """Returns the key of a dict entry, or the index of an element, from a step of a path."""
    return key.key if hasattr(key, "key") else key.idx
