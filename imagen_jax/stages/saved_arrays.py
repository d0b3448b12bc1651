"""Folders of arrays: written by Orbax, renamed when complete, verified by checksum when read.

    FOLDER/ITEM/…              a pytree of arrays
    FOLDER/SHA256SUMS          checksum of every file, because Orbax would load flipped bits

A folder is complete after its checksums are written, see `checkpoint_folder.py`, so that a kill at any moment leaves a
complete folder or leftovers, and a folder without checksums is damaged.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from imagen_jax.errors import ConfigError
from imagen_jax.io import checksums
from imagen_jax.io.local_copy import copy_file
from imagen_jax.io.paths import file_sizes
from imagen_jax.parallel import multihost
from imagen_jax.parallel.sharding import key_path
from imagen_jax.stages.checkpoint_folder import CheckpointFolder

# arrays that an error lists; the others are counted
_MAX_MISMATCHES = 5
# in the paths of files that a single process wrote; process 0 wrote the others
_PROCESS_INDEX = re.compile(r"process_(\d+)")


def commit(folder: CheckpointFolder, step: int) -> None:
    """Adds the checksums to what all processes have written, and completes it. May run in a thread."""
    unfinished = folder.unfinished(step)
    count, index = jax.process_count(), jax.process_index()
    files = checksums.list_files(unfinished)
    checksums.write_shard(unfinished, index, [name for name in files if _process_index(name) % count == index])
    if count > 1:
        asyncio.run(
            ocp.multihost.sync_global_processes("checksums", operation_id=f"imagen_jax {folder.path.name} {step}")
        )
    if multihost.is_main_process():
        checksums.merge_shards(unfinished, count)
        folder.commit(step)


def _process_index(name: str) -> int:
    """Returns the index of the process that wrote a file, from the file's path."""
    match = _PROCESS_INDEX.search(name)
    return int(match[1]) if match else 0


def verify(folder: Path, items: set[str], manifest: bytes | None = None) -> list[str]:
    """Checks the files of some items against their checksums; the files are split over the processes.

    Args:
        folder: the folder.
        items: names of the items.
        manifest: the checksums, from elsewhere; None for those in the folder.

    Returns:
        A message for each problem, the same on every process.
    """

    included = functools.partial(_is_of, items)
    problems = checksums.verify(folder, included, jax.process_index(), jax.process_count(), manifest)
    gathered = multihost.all_gather_strings("\n".join(problems))
    return list(dict.fromkeys(problem for text in gathered for problem in text.splitlines()))


def _is_of(items: set[str], name: str) -> bool:
    """Returns whether a file, by its path in the folder, is one of these items, or describes the folder."""
    return "/" not in name or name.split("/")[0] in items


def size(folder: Path, items: set[str]) -> int:
    """Returns the bytes of the files of some items. Raises OSError."""
    return sum(count for name, count in file_sizes(folder).items() if _is_of(items, name))


def copy(folder: Path, target: Path, items: set[str]) -> None:
    """Copies the files of some items, with those that describe the folder, to a local folder. Raises OSError."""
    names = [name for name in (*checksums.list_files(folder), checksums.MANIFEST) if _is_of(items, name)]
    for name in names:
        copy_file(folder / name, target / name)


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keeps Orbax from logging what it cannot read, which is raised as well; and from logging it later."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio", "fsspec.prefetcher")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    except Exception:
        gc.collect()  # tasks that have failed and were not waited for are reported when they are deleted
        raise
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def shapes(folder: Path) -> Mapping[str, Any]:
    """Returns the items of a folder as trees of array metadata, with `shape` and `dtype`."""
    return ocp.checkpointables_metadata(str(folder)).metadata


def load(folder: Path, items: dict[str, Any], partial: bool = False) -> dict[str, Any]:
    """Loads items.

    Args:
        folder: the folder.
        items: trees of abstract arrays with shardings.
        partial: whether the trees may lack arrays of the folder.
    """
    if not partial:
        return ocp.load_checkpointables(str(folder), items)
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        return ocp.load_checkpointables(str(folder), items)


def load_integer(folder: Path, item: str) -> int:
    """Loads an item that is one integer, on the host."""
    return int(ocp.load_checkpointables(str(folder), {item: np.zeros((), np.int32)})[item])


def describe(tree: Any, item: str, any_float: bool = False) -> dict[str, str]:
    """Returns the type and shape of each array of a tree by its name, which begins with that of the item.

    Args:
        tree: arrays, abstract arrays or array metadata.
        item: name of the item.
        any_float: whether all float types are described alike.
    """

    def text(leaf: Any) -> str:
        is_float = any_float and jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
        return f"{'float' if is_float else leaf.dtype}{list(leaf.shape)}"

    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {f"{item}/{key_path(path)}".strip("/"): text(leaf) for path, leaf in leaves}


def tree_mismatches(stored: Any, expected: Any, item: str) -> list[str]:
    """Compares names, shapes and types of two trees of arrays.

    In `opt_state`, float types may differ: `optimizer.first_moment_dtype` may change between starts.

    Args:
        stored: the tree in a folder.
        expected: the tree of the model or optimizer.
        item: the name of the folder's item, the first part of each array's name.

    Returns:
        A phrase for each array that differs; empty if the trees match.
    """
    actual, required = (describe(tree, item, any_float=item == "opt_state") for tree in (stored, expected))
    missing = [f"{name} is missing" for name in sorted(required.keys() - actual.keys())]
    unexpected = [f"{name} is unexpected" for name in sorted(actual.keys() - required.keys())]
    different = [
        f"{name} is {actual[name]}, not {required[name]}"
        for name in sorted(required.keys() & actual.keys())
        if actual[name] != required[name]
    ]
    return missing + unexpected + different


def mismatch_error(what: str, mismatches: list[str]) -> ConfigError:
    """Returns the error for saved arrays, such as a checkpoint, that are not those of the config's model."""
    shown, more = mismatches[:_MAX_MISMATCHES], len(mismatches) - _MAX_MISMATCHES
    listed = "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
    return ConfigError(
        f"{what} does not match the model or optimizer of its config in {len(mismatches)} array(s): {listed}; use the "
        "config it was trained with, or another folder"
    )
