"""Files of the states of metrics, so that an evaluation continues after a kill; and the merging of hosts' states.

A file is an uncompressed .npz, written atomically, whose parts have checksums. It has the arrays of each state and what
they are states of, such as the network and the resizing: that of another evaluation is refused.
"""

from __future__ import annotations

import io
import json
import logging
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from imagen_jax.errors import ConfigError
from imagen_jax.io.atomic import atomic_write
from imagen_jax.io.changes import changes, flatten
from imagen_jax.parallel import multihost

_IDENTITY = "identity"
# what numpy and zipfile raise for damaged files
DAMAGES = (zipfile.BadZipFile, OSError, ValueError, KeyError, EOFError, NotImplementedError, SyntaxError)

logger = logging.getLogger(__name__)


class State(Protocol):
    """What is kept of the images so far for a metric."""

    @property
    def images(self) -> int:
        """The number of images."""

    @property
    def update(self) -> Callable[..., None]:
        """Adds a batch, from the index of its first image and arrays [B, ...]. Raises ConfigError."""

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the state, exactly."""

    def load_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the state by that of `to_arrays`. Raises ValueError or KeyError if it is not one."""

    def merge(self, other: Any) -> None:
        """Adds the images of another part. Raises ConfigError."""


def save_states(path: Path, identity: Mapping[str, Any], states: Mapping[str, State]) -> None:
    """Writes states to a file, atomically.

    Args:
        path: the file, also in a bucket.
        identity: what the states are of, a JSON object: network, resizing, seeds, captions.
        states: by name.

    Raises:
        OSError: the file cannot be written.
    """
    atomic_write(path, _to_bytes(identity, states))


def load_states(path: Path, identity: Mapping[str, Any], states: Mapping[str, State]) -> bool:
    """Replaces states by those of a file.

    Args:
        path: the file.
        identity: see `save_states`.
        states: by name, new ones, made with the arguments of those that were saved.

    Returns:
        Whether they are replaced; not if there is no file, or if it is damaged, which is logged.

    Raises:
        ConfigError: the file is of another evaluation.
        OSError: it cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return False
    try:
        arrays, saved = _from_bytes(data)
    except DAMAGES:
        logger.warning("%s is damaged, and is left out: metrics start with the first image again", path)
        return False
    before, now = flatten(saved), flatten(json.loads(json.dumps(dict(identity))))
    changed = list(changes(before, now).values())
    if changed or set(arrays) != set(states):
        names = f"it has {', '.join(arrays)}, not {', '.join(states)}"
        raise ConfigError(f"{path} is of another evaluation: {'; '.join(changed) or names}: give another folder")
    try:
        for name, state in states.items():
            state.load_arrays(arrays[name])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} has other states than these ({error}): give another folder") from error
    return True


def merge_over_hosts(states: Mapping[str, State], empty: Mapping[str, State]) -> None:
    """Adds the images of all other processes to the states of this one, in their order; all have to call it.

    Args:
        states: by name, of the images of this process.
        empty: new ones of the same arguments, which are overwritten.

    Raises:
        ConfigError: states cannot be merged.
    """
    for index, data in enumerate(multihost.all_gather_bytes(_to_bytes({}, states))):
        if index != jax.process_index():
            arrays, _ = _from_bytes(data)
            for name, state in states.items():
                empty[name].load_arrays(arrays[name])
                state.merge(empty[name])


def _to_bytes(identity: Mapping[str, Any], states: Mapping[str, State]) -> bytes:
    arrays = {f"{name}/{key}": array for name, state in states.items() for key, array in state.to_arrays().items()}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **{_IDENTITY: np.array(json.dumps(dict(identity)))}, **arrays)
    return file.getvalue()


def _from_bytes(data: bytes) -> tuple[dict[str, dict[str, np.ndarray]], Any]:
    """Returns arrays by state and name, and the identity. Raises one of `DAMAGES`; zip files have checksums."""
    result: dict[str, dict[str, np.ndarray]] = {}
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        identity = json.loads(file[_IDENTITY].item())
        for name in file.files:
            state, slash, key = name.partition("/")
            if slash:
                result.setdefault(state, {})[key] = file[name]
    return result, identity
