"""A stage's folder: its config and its checkpoints, written asynchronously by Orbax, named when they are complete.

    WORKDIR/config.json                        what the stage is: JSON, never executed
    WORKDIR/checkpoints/STEP/                  step, params, opt_state, ema_params; data position, config, versions
    WORKDIR/checkpoints/STEP/SHA256SUMS        the checksum of every file: Orbax would load a flipped bit
    WORKDIR/checkpoints/STEP.unfinished…       what a kill left of a save, or of the deletion of an old one
    WORKDIR/checkpoints/STEP.damaged           set aside: its files are not what was written

A step gets its name by a rename, after its checksums are on the disk, so that a kill at any moment leaves whole steps
and leftovers only. Hence a step without checksums is damaged. Parameters, EMA and optimizer state are items of their
own: sampling reads and verifies the EMA alone.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp

from imagen_jax.config.load import from_json, to_json
from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import ConfigError, TrainingError, is_out_of_space
from imagen_jax.io import checksums
from imagen_jax.io.atomic import read_json, write_json
from imagen_jax.io.changes import changes, flatten
from imagen_jax.parallel import multihost, runtime
from imagen_jax.parallel.sharding import key_path

CONFIG_FILE = "config.json"
# What every version has saved, and what no default could stand for.
REQUIRED_KEYS = ("image_size", "channels", "data", "text", "model", "diffusion")
CHECKPOINTS = "checkpoints"
UNFINISHED = ".unfinished"
DAMAGED = ".damaged"
# A run may go on with other values of these; with any other change it would no longer train what it began.
CHANGEABLE = (
    *("training", "optimizer", "sampling", "mesh", "sharding_rules", "text.cache"),
    # where the same images lie, how fast they are read, and how many of them may be broken
    *("data.path", "data.threads", "data.prefetch", "data.max_corrupt"),
)
STATE_ITEMS = ("step", "params", "opt_state", "ema_params")
VERSIONS_OF = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# What files are called that one process alone wrote; process 0 wrote the others.
WRITTEN_BY = re.compile(r"process_(\d+)")


def _warn(text: str) -> None:
    """A line for the person at the screen."""
    print(f"warning: {text}", file=sys.stderr)


class Checkpoints:
    """The checkpoints of a stage.

    Args:
        workdir: the stage's folder.
        keep: how many of the latest to keep; None to keep all and only read.
        keep_best: whether to keep, beside the latest, the one that was saved with the lowest score.
        go_on: whether to say so and no more where a step could not be written; but the last has to be.
        say: takes a sentence about a step that was set aside, passed over or not written.
    """

    def __init__(
        self,
        workdir: Path,
        keep: int | None = None,
        keep_best: bool = False,
        go_on: bool = False,
        say: Callable[[str], None] = _warn,
    ) -> None:
        self._folder = (workdir / CHECKPOINTS).absolute()
        self._keep, self._keep_best, self._go_on, self._say = keep, keep_best, go_on, say
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._passed_over: set[int] = set()  # damaged, found by a reader, who leaves them where they are
        self._newest = self.latest_step  # the step that was saved or restored last
        if keep is not None and multihost.is_main_process():
            self._folder.mkdir(parents=True, exist_ok=True)
            for leftover in self._folder.iterdir():
                if UNFINISHED in leftover.name or ".orbax-checkpoint-tmp" in leftover.name:
                    shutil.rmtree(leftover)

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None if there is none."""
        return max(set(self._steps()) - self._passed_over, default=None)

    def _steps(self) -> Iterator[int]:
        if self._folder.is_dir():
            yield from (int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())

    def save(self, state: Any, data: dict[str, Any], config: StageConfig, score: float | None = None) -> None:
        """Begins to save a TrainState, once the save before is complete.

        Args:
            state: what its step is, is the checkpoint's name; a step is saved once.
            data: the data iterator's state.
            config: the run's.
            score: what ``keep_best`` goes by: less is better. None if this step has none.

        Raises:
            RunError: this or the save before could not be written.
        """
        self.wait()
        step = int(state.step)
        if step == self._newest:
            return
        self._newest = step
        items = {name: getattr(state, name) for name in STATE_ITEMS}
        versions = {name: importlib.metadata.version(name) for name in VERSIONS_OF}
        about = {"data": data, "config": to_json(config), "versions": versions, "score": score}
        unfinished = self._folder / f"{step}{UNFINISHED}"
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(items))
        try:
            written = ocp.save_checkpointables_async(unfinished, items, custom_metadata=about)
        except Exception as error:
            self._pending = Future()
            self._pending.set_exception(self._failure(error, step, size))
            return self.wait()
        self._pending = self._thread.submit(self._finish, written, step, size)

    def _finish(self, written: Any, step: int, size: int) -> None:
        """Waits for what Orbax writes, adds the checksums, and gives the step its name. Not in the main thread."""
        unfinished = self._folder / f"{step}{UNFINISHED}"
        try:
            written.result()
            count, index = jax.process_count(), jax.process_index()
            files = checksums.list_files(unfinished)
            checksums.write_shard(unfinished, index, [name for name in files if _process_index(name) % count == index])
            if count > 1:
                asyncio.run(ocp.multihost.sync_global_processes("checksums", operation_id=f"imagen_jax {step}"))
            if multihost.is_main_process():
                checksums.merge_shards(unfinished, count)
                unfinished.rename(self._folder / str(step))
                self._delete_old()
        except Exception as error:
            raise self._failure(error, step, size) from error
        finally:
            runtime.malloc_trim()

    def _failure(self, error: Exception, step: int, size: int) -> TrainingError:
        """What to say of a step that could not be written; what was written of it is deleted."""
        if multihost.is_main_process():
            for leftover in self._folder.glob(f"{step}{UNFINISHED}*"):
                shutil.rmtree(leftover, ignore_errors=True)
        if not is_out_of_space(error):
            return TrainingError(f"the checkpoint of step {step} could not be written to {self._folder}: {error}")
        older = self.latest_step
        return TrainingError(
            f"the checkpoint of step {step}, of {size:,} bytes, could not be written to {self._folder}: no room is "
            f"left there ({shutil.disk_usage(self._folder).free:,} bytes are free); "
            f"{'there is no older one' if older is None else f'that of step {older} is intact'}; "
            "free some, or raise the limit, and run again"
        )

    def _delete_old(self) -> None:
        """Deletes all complete steps but the latest and, if that is asked for, the best."""
        steps = sorted(self._steps())
        kept = set(steps[-(self._keep or len(steps)) :])
        if self._keep_best:
            scores = {step: self._score(step) for step in steps}
            kept.add(min(steps, key=lambda step: (scores[step], -step)))
        for step in set(steps) - kept:
            # by another name first: a kill half-way must leave nothing that looks like a step
            leaving = (self._folder / str(step)).rename(self._folder / f"{step}{UNFINISHED}")
            shutil.rmtree(leaving)

    def _score(self, step: int) -> float:
        try:
            score = self._about(step)["score"]
        except (OSError, ValueError, KeyError, TypeError):
            score = None  # damaged, and found to be so when it is restored
        return score if score is not None and math.isfinite(score) else math.inf

    def _about(self, step: int) -> dict[str, Any]:
        return ocp.checkpointables_metadata(self._folder / str(step)).custom_metadata

    def failed(self) -> bool:
        """Whether the save that was begun has come to nothing, as ``wait`` would tell; asked at every step."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def wait(self) -> None:
        """Returns when the save that was begun is complete on disk.

        Raises:
            RunError: it could not be written, unless the run goes on all the same.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except TrainingError as error:
            self._newest = None
            if not self._go_on:
                raise
            self._say(str(error))

    def restore(self, abstract: Any) -> tuple[Any, dict[str, Any]]:
        """(TrainState, what was saved with it) of the latest checkpoint that is whole, onto the abstract shardings.

        What was saved with it: ``data``, the data iterator's state, ``config``, ``versions``. Later steps that are
        damaged are set aside.

        Raises:
            UsageError: its names, shapes or types are not those of the abstract state.
            RunError: there is no whole checkpoint.
        """
        step, items = self._load({name: getattr(abstract, name) for name in STATE_ITEMS})
        self._newest = step
        return type(abstract)(**items), self._about(step)

    def restore_ema(self, abstract_params: Any) -> Any:
        """The EMA of the latest checkpoint whose EMA is whole, onto the shardings of abstract parameters.

        Nothing else is read, nor verified.

        Raises:
            UsageError, RunError: as ``restore``.
        """
        return self._load({"ema_params": abstract_params})[1]["ema_params"]

    def _load(self, items: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        step = self._latest_whole(set(items))
        where = self._folder / str(step)
        stored = ocp.checkpointables_metadata(where).metadata
        faults = [fault for name in items for fault in tree_mismatches(stored[name], items[name], name)]
        if faults:
            raise ConfigError(
                f"checkpoint {where} is of another model or optimizer than its config describes: {'; '.join(faults)}; "
                "use the config it was trained with, or another folder"
            )
        return step, ocp.load_checkpointables(where, items)

    def _latest_whole(self, items: set[str]) -> int:
        """The newest step whose files of these items are what was written; newer ones are set aside."""

        def wanted(name: str) -> bool:
            return "/" not in name or name.split("/")[0] in items

        damaged = []
        # what process 0 sees: for the others a folder may have its old name for a while
        while (latest := multihost.all_gather_strings(str(self.latest_step))[0]) != "None":
            step, place = int(latest), (jax.process_index(), jax.process_count())
            faults = [
                fault
                for share in multihost.all_gather_strings(
                    "\n".join(checksums.verify(self._folder / latest, wanted, *place))
                )
                for fault in share.splitlines()
            ]
            if not faults:
                return step
            damaged.append(step)
            self._set_aside(step, list(dict.fromkeys(faults)))
        raise TrainingError(
            f"{self._folder} has no whole checkpoint left: of {len(damaged)} there were, each is damaged; "
            "mend one, or train again from step 0 by the same command"
        )

    def _set_aside(self, step: int, faults: list[str]) -> None:
        """Takes a damaged step out of use: renamed, or by a reader passed over."""
        if self._keep is None:
            self._passed_over.add(step)
        if not multihost.is_main_process():
            return
        where = self._folder / str(step)
        said = f"checkpoint {where} is damaged: {'; '.join(faults)}"
        if self._keep is None:
            self._say(f"{said}; it is passed over")
            return
        aside = next(name for name in self._free_names(f"{step}{DAMAGED}") if not name.exists())
        where.rename(aside)
        self._say(f"{said}; it is set aside as {aside.name}")

    def _free_names(self, name: str) -> Iterator[Path]:
        yield self._folder / name
        yield from (self._folder / f"{name}.{number}" for number in range(2, 10**6))

    def close(self) -> None:
        """Waits for what is being saved. Raises RunError if it could not be written."""
        self._go_on = False
        try:
            self.wait()
        finally:
            self._thread.shutdown()


def _process_index(name: str) -> int:
    """Which process wrote a file of a checkpoint, whose path is given."""
    found = WRITTEN_BY.search(name)
    return int(found[1]) if found else 0


def tree_mismatches(stored: Any, expected: Any, item: str) -> list[str]:
    """What differs between two trees in names, shapes and types: a phrase for each leaf. [] if they fit.

    The optimizer's numbers may change between types of floats, as ``optimizer.first_moment_dtype`` says.
    """

    def described(tree: Any) -> dict[str, str]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {f"{item}/{key_path(path)}".rstrip("/"): describe(leaf) for path, leaf in leaves}

    def describe(leaf: Any) -> str:
        any_float = item == "opt_state" and jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
        return f"{'float' if any_float else leaf.dtype}{list(leaf.shape)}"

    found, wanted = described(stored), described(expected)
    missing = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    surplus = [f"{name} is surplus" for name in sorted(found.keys() - wanted.keys())]
    other = [
        f"{name} is {found[name]}, not {wanted[name]}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name] != wanted[name]
    ]
    return missing + surplus + other


def write_config(workdir: Path, config: StageConfig) -> None:
    """Puts the config into the stage's folder, by a rename."""
    write_json(workdir / CONFIG_FILE, to_json(config))


def read_config(workdir: Path) -> StageConfig:
    """The config of a stage's folder.

    Raises:
        UsageError: there is no such folder, or no stage in it.
    """
    if not workdir.is_dir():
        raise ConfigError(f"stage folder {str(workdir)!r} does not exist: give the --workdir of a training run")
    try:
        saved = read_json(workdir / CONFIG_FILE)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{str(workdir)!r} is no stage folder, it has no {CONFIG_FILE}: give the --workdir of a training run"
        ) from error
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{str(workdir / CONFIG_FILE)!r} is not readable as JSON: restore it from a checkpoint's metadata"
        ) from error
    absent = [key for key in REQUIRED_KEYS if not isinstance(saved, dict) or key not in saved]
    if absent:
        raise ConfigError(
            f"{str(workdir / CONFIG_FILE)!r} does not describe a stage, it has no {', '.join(absent)}: restore it from a "
            "checkpoint's metadata"
        )
    try:
        return from_json(saved)
    except ConfigError as error:
        raise ConfigError(*(f"{str(workdir / CONFIG_FILE)!r}: {problem}" for problem in error.problems)) from error


def open_workdir(workdir: Path, config: StageConfig) -> None:
    """Makes the stage's folder, or checks that it holds the same run, and puts the config into it.

    Raises:
        UsageError: the folder cannot be written, or its run was begun with a config that differs in more than may
            change between runs; then nothing is written.
    """
    if (workdir / CONFIG_FILE).exists():
        check_same_run(workdir, config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if multihost.is_main_process():
            write_config(workdir, config)
    except OSError as error:
        raise not_writable_error(workdir, error) from error


def not_writable_error(workdir: Path, error: OSError) -> ConfigError:
    """What to say of a folder that cannot be written."""
    return ConfigError(f"--workdir {str(workdir)!r} cannot be written ({error.strerror}): give another folder")


def check_same_run(workdir: Path, config: StageConfig) -> None:
    """Raises UsageError if the config of the folder's run differs in more than may change between runs."""
    before, now = flatten(to_json(read_config(workdir))), flatten(to_json(config))
    changed = [
        sentence
        for name, sentence in sorted(changes(before, now).items())
        if not {name, name.split(".")[0]} & {*CHANGEABLE}
    ]
    if changed:
        raise ConfigError(
            f"{str(workdir)!r} holds a run with another config: {'; '.join(changed[:5])}; "
            "give the config it was begun with, or another --workdir"
        )
    size = "training.batch_size"
    check_batch_size(before[size], now[size], now["training.allow_batch_change"])


def check_batch_size(before: int, now: int, allowed: bool) -> None:
    """Raises UsageError if the global batch of a run is changed, and that is not allowed."""
    if before != now and not allowed:
        raise ConfigError(
            f"training.batch_size was {before} and is now {now}, and the position in the data counts batches: "
            f"--config.training.batch_size={before} goes on as before; --config.training.allow_batch_change=True goes "
            f"on from the same example in steps of {now}, by which learning rate and EMA then go"
        )
