"""A stage's folder: its config and its checkpoints, written atomically and asynchronously by Orbax.

    WORKDIR/config.json           what the stage is: JSON, never executed
    WORKDIR/checkpoints/STEP/     step, params, opt_state, ema_params; data position and config in its metadata

Parameters, EMA and optimizer state are items of their own, so that sampling reads the EMA alone.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax
import ml_collections
import orbax.checkpoint.experimental.v1 as ocp

from imagen_jax import processes
from imagen_jax.config_rules import flatten
from imagen_jax.errors import UsageError
from imagen_jax.sharding import path_of

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
# A run may go on with other values of these; with any other change it would no longer train what it began.
CHANGEABLE = ("training", "optimizer", "sampling", "mesh", "sharding_rules")
STATE_ITEMS = ("step", "params", "opt_state", "ema_params")


class Checkpoints:
    """The checkpoints of a stage.

    Args:
        workdir: the stage's folder.
        keep: how many of the latest to keep; None to keep all and only read.
    """

    def __init__(self, workdir: Path, keep: int | None = None) -> None:
        policy = None if keep is None else ocp.training.preservation_policies.LatestN(keep)
        self._folder = (workdir / CHECKPOINTS).absolute()
        self._checkpointer: Any = None
        # Orbax makes the folder: who only reads must not.
        if keep is not None or self._folder.is_dir():
            self._checkpointer = ocp.training.Checkpointer(
                self._folder, preservation_policy=policy, cleanup_tmp_directories=keep is not None
            )
        self._pending: Any = None

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None if there is none."""
        latest = self._checkpointer.latest if self._checkpointer else None
        return None if latest is None else latest.step

    def save(self, state: Any, data: dict[str, Any], config: ml_collections.ConfigDict) -> None:
        """Begins to save a TrainState, the data iterator's state and the config, once the save before is complete."""
        self.wait()
        step = int(state.step)
        if step != self.latest_step:
            self._pending = self._checkpointer.save_checkpointables_async(
                step,
                {name: getattr(state, name) for name in STATE_ITEMS},
                force=True,
                custom_metadata={"data": data, "config": json.loads(config.to_json())},
            )

    def wait(self) -> None:
        """Returns when the save that was begun is complete on disk."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def restore(self, abstract: Any) -> tuple[Any, dict[str, Any]]:
        """(TrainState, the data iterator's state) of the latest checkpoint, onto the abstract state's shardings.

        Raises:
            UsageError: its names, shapes or types are not those of the abstract state.
        """
        items = self._load({name: getattr(abstract, name) for name in STATE_ITEMS})
        data = self._checkpointer.checkpointables_metadata(self.latest_step).custom_metadata["data"]
        return type(abstract)(**items), data

    def restore_ema(self, abstract_params: Any) -> Any:
        """The EMA of the latest checkpoint, onto the shardings of abstract parameters; nothing else is read.

        Raises:
            UsageError: as ``restore``.
        """
        return self._load({"ema_params": abstract_params})["ema_params"]

    def _load(self, items: dict[str, Any]) -> dict[str, Any]:
        step = self.latest_step
        stored = self._checkpointer.checkpointables_metadata(step).metadata
        for name in {"params", "ema_params"} & set(items):
            check_fits(stored[name], items[name], f"{self._folder / str(step)} ({name})")
        return self._checkpointer.load_checkpointables(step, items)

    def close(self) -> None:
        """Waits for what is being saved and lets go of the folder."""
        self.wait()
        if self._checkpointer:
            self._checkpointer.close()


def check_fits(stored: Any, expected: Any, where: str) -> None:
    """Raises UsageError, with what differs, unless both trees have the same names, shapes and types."""

    def described(tree: Any) -> dict[str, str]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {path_of(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}

    found, wanted = described(stored), described(expected)
    missing = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    surplus = [f"{name} is surplus" for name in sorted(found.keys() - wanted.keys())]
    other = [
        f"{name} is {found[name]}, not {wanted[name]}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name] != wanted[name]
    ]
    faults = missing + surplus + other
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise UsageError(
            f"checkpoint {where} is of another model than its config describes: {'; '.join(faults[:5])}{more}; "
            "use the config it was trained with, or another folder"
        )


def write_config(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Puts the config into the stage's folder, by a rename."""
    unfinished = workdir / f".{CONFIG_FILE}.unfinished"
    unfinished.write_text(json.dumps(json.loads(config.to_json()), indent=2, sort_keys=True) + "\n")
    os.replace(unfinished, workdir / CONFIG_FILE)


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """The config of a stage's folder.

    Raises:
        UsageError: there is no such folder, or no stage in it.
    """
    if not workdir.is_dir():
        raise UsageError(f"stage folder {str(workdir)!r} does not exist: give the --workdir of a training run")
    try:
        found = json.loads((workdir / CONFIG_FILE).read_text())
        if not isinstance(found, dict):
            raise ValueError("a config is a JSON object")
        return ml_collections.ConfigDict(found)
    except FileNotFoundError as error:
        raise UsageError(
            f"{str(workdir)!r} is no stage folder, it has no {CONFIG_FILE}: give the --workdir of a training run"
        ) from error
    except (ValueError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{str(workdir / CONFIG_FILE)!r} is not readable as JSON: restore it from a checkpoint's metadata"
        ) from error


def open_workdir(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Makes the stage's folder, or checks that it holds the same run, and puts the config into it.

    Raises:
        UsageError: the folder cannot be written, or its run was begun with a config that differs in more than may
            change between runs; then nothing is written.
    """
    if (workdir / CONFIG_FILE).exists():
        check_same_run(workdir, config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if processes.writes():
            write_config(workdir, config)
    except OSError as error:
        raise UsageError(
            f"--workdir {str(workdir)!r} cannot be written ({error.strerror}): give another folder"
        ) from error


def check_same_run(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Raises UsageError if the config of the folder's run differs in more than may change between runs."""
    before, now = flatten(json.loads(read_config(workdir).to_json())), flatten(json.loads(config.to_json()))
    changed = [
        f"{name} was {before.get(name, 'absent')!r} and is now {now.get(name, 'absent')!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name.split(".")[0] not in CHANGEABLE
    ]
    if changed:
        raise UsageError(
            f"{str(workdir)!r} holds a run with another config: {'; '.join(changed[:5])}; "
            "give the config it was begun with, or another --workdir"
        )
