"""The split of a network's parameters into a part that is trained and a part that is frozen, by path."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

import jax

from imagen_jax.errors import ConfigError
from imagen_jax.parallel.sharding import key_path

Tree = dict[str, Any]


def split(params: Tree, patterns: Sequence[str]) -> tuple[Tree, Tree]:
    """Splits parameters by regular expressions, each searched for in paths such as `down_0_res_0/conv_0/kernel`.

    Args:
        params: nested dicts of arrays or abstract arrays.
        patterns: `training.trainable`; none for all parameters.

    Returns:
        (trainable, frozen): nested dicts without empty ones; `merge` joins them.

    Raises:
        ConfigError: a pattern matches no parameter, or together they match all.
    """
    if not patterns:
        return params, {}
    paths = param_paths(params)
    check_patterns("training.trainable", patterns, paths, f"the network's {len(paths)} parameters")
    trainable = {path for path in paths if any(re.search(pattern, path) for pattern in patterns)}
    if len(trainable) == len(paths):
        raise ConfigError(
            f"training.trainable {tuple(patterns)!r} matches all of the network's {len(paths)} parameters: leave it "
            "empty to train everything"
        )
    return select(params, trainable), select(params, set(paths) - trainable)


def check_patterns(key: str, patterns: Sequence[str], paths: Sequence[str], what: str) -> None:
    """Checks that regular expressions are each found in a path.

    Args:
        key: the config key that has them.
        patterns: the regular expressions.
        paths: of parameters or of modules.
        what: what the paths are of, for the message.

    Raises:
        ConfigError: with all that are found in none.
    """
    unmatched = [pattern for pattern in patterns if not any(re.search(pattern, path) for path in paths)]
    if unmatched:
        raise ConfigError(
            *(
                f"{key}: {pattern!r} matches none of {what}: give a regular expression for paths such as "
                f"{_nearest_path(pattern, paths)!r}"
                for pattern in unmatched
            )
        )


def _nearest_path(pattern: str, paths: Sequence[str]) -> str:
    """Returns the path whose parts, or adjacent parts together, are most like a pattern."""
    length = pattern.count("/") + 1

    def likeness(path: str) -> float:
        parts = path.split("/")
        pieces = ["/".join(parts[start : start + length]) for start in range(max(1, len(parts) - length + 1))]
        return max(difflib.SequenceMatcher(None, pattern, piece).ratio() for piece in pieces)

    return max(paths, key=likeness)


def param_paths(params: Tree) -> list[str]:
    """Returns the paths of parameters, such as `down_0_res_0/conv_0/kernel`."""
    return [key_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def select(params: Tree, paths: set[str], prefix: str = "") -> Tree:
    """Returns the parameters with the given paths, as nested dicts without empty ones."""
    selected: Tree = {}
    for name, value in params.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            value = select(value, paths, f"{path}/")
            if value:
                selected[name] = value
        elif path in paths:
            selected[name] = value
    return selected


def merge(params: Tree, others: Tree) -> Tree:
    """Returns the parameters of two nested dicts without a path in common as one."""
    merged = {**others, **params}
    for name in params.keys() & others.keys():
        merged[name] = merge(params[name], others[name])
    return merged
