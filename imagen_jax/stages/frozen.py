"""The frozen part of a network's parameters, which a run saves once.

WORKDIR/frozen/0/          the parameters that `training.trainable` does not match; see `stages/saved_arrays.py`

It is written before the run's first step, so that every checkpoint has it beside it, and a copy of its checksums.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp

from imagen_jax.errors import TrainingError, is_out_of_space
from imagen_jax.parallel import multihost
from imagen_jax.stages import saved_arrays
from imagen_jax.stages.checkpoint_folder import FROZEN, checkpoint_folder
from imagen_jax.stages.checkpoints import saved_metadata
from imagen_jax.stages.saved_arrays import mismatch_error

ITEM = "params"
_STEP = 0  # the number of steps that change them


def save_frozen(workdir: Path, params: Any) -> None:
    """Saves the frozen parameters of a run that starts, in place of what an earlier start left; all processes call it.

    Raises:
        TrainingError: they could not be written.
    """
    folder = checkpoint_folder(workdir / FROZEN)
    if multihost.is_main_process() and (params or folder.steps()):
        folder.clean()
        for step in folder.steps():
            folder.delete(step)
    multihost.barrier("old frozen parameters are deleted")
    if not params:
        return
    try:
        ocp.save_checkpointables(str(folder.unfinished(_STEP)), {ITEM: params})
        saved_arrays.commit(folder, _STEP)
    except Exception as error:
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        reason = "no space left" if is_out_of_space(error) else error
        raise TrainingError(
            f"the frozen parameters ({size:,} bytes) could not be written to {folder.path}: {reason}; run the "
            "same command again once the folder can be written"
        ) from error


def frozen_shapes(workdir: Path) -> Any:
    """Returns the frozen parameters in a stage's folder as a tree of array metadata.

    Raises:
        TrainingError: they are missing or damaged.
    """
    folder = frozen_folder(workdir)
    metadata = saved_metadata(workdir)
    copy = metadata[1].get("frozen") if metadata else None
    problems = saved_arrays.verify(folder, {ITEM}, None if copy is None else copy.encode())
    if problems:
        raise TrainingError(
            f"the frozen parameters in {folder} are damaged: {'; '.join(problems)}; restore the folder from a copy, or "
            "train again from step 0 in another --workdir"
        )
    return saved_arrays.shapes(folder)[ITEM]


def load_frozen(workdir: Path, abstract: Any) -> Any:
    """Loads the frozen parameters of a run that resumes.

    Args:
        workdir: the stage's folder.
        abstract: the parameters with their shardings; `{}` for none.

    Raises:
        ConfigError: names, shapes or types differ from those of the folder.
        TrainingError: as `frozen_shapes`.
    """
    if not abstract:
        return {}
    mismatches = saved_arrays.tree_mismatches(frozen_shapes(workdir), abstract, FROZEN)
    if mismatches:
        raise mismatch_error(str(frozen_folder(workdir)), mismatches)
    return saved_arrays.load(frozen_folder(workdir), {ITEM: abstract})[ITEM]


def frozen_folder(workdir: Path) -> Path:
    """Returns the folder of a run's frozen parameters, which has the item ITEM."""
    return checkpoint_folder(workdir / FROZEN).step(_STEP)
