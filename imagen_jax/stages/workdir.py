"""A stage's folder and the config in it, which is checked whenever a run resumes there.

WORKDIR/config.json         the stage's full config, as JSON; nothing in it is executed
WORKDIR/config.json.sha256  its checksum, which `sha256sum --check` can read
WORKDIR/checkpoints/        see `stages/checkpoints.py`

Every checkpoint has a copy of the config among its verified files. What describes the network and its weights is taken
from there; what may change between starts is taken from config.json, unless its checksum says that it is damaged.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from imagen_jax.config.load import from_json, to_json
from imagen_jax.config.paths import map_paths
from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import ConfigError
from imagen_jax.io.atomic import atomic_write, json_bytes, read_json
from imagen_jax.io.bucket import BucketError
from imagen_jax.io.changes import changes, flatten, shown
from imagen_jax.io.paths import as_path
from imagen_jax.parallel import multihost
from imagen_jax.stages.checkpoints import saved_config

CONFIG_FILE = "config.json"
CONFIG_CHECKSUM = "config.json.sha256"
# every version has saved these keys, and no default could replace them
_REQUIRED_KEYS = ("image_size", "channels", "data", "text", "model", "diffusion")
# A run may resume with other values of these keys or groups; any other change would make it a different experiment.
_CHANGEABLE = {
    *("training", "optimizer", "sampling", "mesh", "sharding_rules", "text.cache"),
    # where the same images are, how fast they are read, and how many of them may be corrupt
    *("data.path", "data.cache_dir", "data.threads", "data.prefetch", "data.max_corrupt", "data.allow_no_captions"),
    "diffusion.low_res_vae",  # where the same weights are, which the run has named
}
# Keys of changeable groups that must stay: what is trained and where it started from.
_FIXED = {"training.trainable", "training.init_from", "training.init_weights", "training.init_partial"}
# What a folder's owner may have to correct by hand, because files have moved.
_PLACES = {"text.model", "text.cache", "data.path"}
_MAX_LISTED_CHANGES = 5
# A run keeps the value that it began with, whatever default the config that it resumes with takes from this version.
_KEPT = "data.transform.convert_profile"
_WRITING_SECONDS = 0.2

logger = logging.getLogger(__name__)


def _write_config(workdir: Path, config: StageConfig) -> None:
    """Writes a config and its checksum into a stage's folder, if they are not there already. Raises OSError."""
    data = json_bytes(to_json(config))
    line = f"{hashlib.sha256(data).hexdigest()}  {CONFIG_FILE}\n".encode()
    if _read(workdir / CONFIG_FILE) == data and _read(workdir / CONFIG_CHECKSUM) == line:
        return
    # without a checksum, a config counts: a kill between these leaves none that looks damaged
    (workdir / CONFIG_CHECKSUM).unlink(missing_ok=True)
    atomic_write(workdir / CONFIG_FILE, data)
    atomic_write(workdir / CONFIG_CHECKSUM, line)


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def read_config(workdir: Path, log: Callable[[str], None] = logger.warning) -> StageConfig:
    """Returns the config of a stage's folder, compared with the copy in its newest checkpoint.

    Args:
        workdir: the folder of a training run.
        log: gets a message on each key in which they differ, unless a later start of the run has changed it.

    Raises:
        ConfigError: the folder does not exist, has no config, or has one that is damaged or not valid, and no
            checkpoint has a copy.
    """
    try:
        exists = workdir.is_dir()
    except BucketError as error:
        raise ConfigError(f"the stage folder cannot be read: {error}") from error
    if not exists:
        raise ConfigError(f"stage folder {str(workdir)!r} does not exist: give the --workdir of a training run")
    state = _file_state(workdir)
    if state == "damaged":
        time.sleep(_WRITING_SECONDS)  # a run that starts may be writing the two files
        state = _file_state(workdir)
    copy = saved_config(workdir)
    if copy is None:
        config = _parse_file(workdir, advice=": no checkpoint has a copy; restore it, or train in another folder")
        if state == "damaged":
            log(f"{str(workdir / CONFIG_FILE)!r} was changed after the run wrote it, and no checkpoint has a copy")
        return config
    step, tree = copy
    try:
        saved: StageConfig = from_json(tree)
    except ConfigError as error:
        config = _parse_file(workdir)
        log(
            f"{str(workdir / CONFIG_FILE)!r} cannot be compared with the copy in the checkpoint of step {step}: {error}"
        )
        return config
    try:
        config = _parse_file(workdir)
    except ConfigError as error:
        if state == "intact":
            raise
        log(f"{'; '.join(error.problems)}; the copy in the checkpoint of step {step} is used")
        return saved
    return _reconcile(config, saved, state, lambda text: log(f"{str(workdir / CONFIG_FILE)!r} {text}"))


def _file_state(workdir: Path) -> str:
    """Returns what the checksum says of the config: "intact", "damaged", or "unknown" where one of them is missing."""
    data, line = _read(workdir / CONFIG_FILE), _read(workdir / CONFIG_CHECKSUM)
    if data is None or line is None:
        return "unknown"
    return "intact" if line.split()[:1] == [hashlib.sha256(data).hexdigest().encode()] else "damaged"


def _parse_file(workdir: Path, advice: str = "") -> StageConfig:
    """Returns the config in the file. Raises ConfigError, with advice where none describes a stage."""
    file = str(workdir / CONFIG_FILE)
    try:
        tree = read_json(workdir / CONFIG_FILE)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{str(workdir)!r} is not a stage folder, it has no {CONFIG_FILE}: give the --workdir of a training run"
        ) from error
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file!r} is not valid JSON{advice}") from error
    missing = [key for key in _REQUIRED_KEYS if not isinstance(tree, dict) or key not in tree]
    if missing:
        raise ConfigError(f"{file!r} does not describe a stage, {', '.join(missing)} missing{advice}")
    try:
        return from_json(tree)
    except ConfigError as error:
        raise ConfigError(*(f"{file!r}: {problem}" for problem in error.problems)) from error


def _reconcile(config: StageConfig, saved: StageConfig, state: str, log: Callable[[str], None]) -> StageConfig:
    """Returns the config of a stage whose file may differ from the copy in a checkpoint.

    Args:
        config: that in the file.
        saved: the copy.
        state: what the file's checksum says, see `_file_state`.
        log: gets the ends of sentences that begin with the file's name.
    """
    before, now = flatten(to_json(saved)), flatten(to_json(config))
    different = [key for key in {**now, **before} if before.get(key) != now.get(key)]
    kept = [key for key in different if _counts(key, state) or _is_moved(key, now.get(key, ""))]
    replaced = [key for key in different if key not in kept]
    if not different and state == "damaged":
        log("was changed after the run wrote it; its values are those of the checkpoint")
    if kept and state != "intact":
        log(f"differs from the copy in the checkpoint, and is used: {_differences(kept, now, before)}")
    if replaced:
        log(
            f"is damaged, or was edited: {_differences(replaced, now, before)}; the checkpoint's copy is used: give "
            "other settings as flags, or to `imagen train`, which writes the file"
        )
    return saved.with_changes({key: now[key] for key in kept if key in now and key in before})


def _is_changeable(key: str) -> bool:
    """Returns whether a run may resume with another value of a key."""
    return key not in _FIXED and (key in _CHANGEABLE or key.split(".")[0] in _CHANGEABLE)


def _counts(key: str, state: str) -> bool:
    """Returns whether the value of a key counts that stands in a file in this state, see `_file_state`."""
    if state == "unknown" and key.startswith("model."):
        return True  # checkpoints that are not those of the file's network are refused when their arrays are compared
    return state != "damaged" and _is_changeable(key)


def _is_moved(key: str, value: Any) -> bool:
    """Returns whether a value is a correction of where files are: a folder that exists."""
    try:
        return key in _PLACES and value != "" and as_path(value).is_dir()
    except (BucketError, ValueError):
        return False


def _differences(keys: list[str], now: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    texts = [
        f"{key} is {shown(now.get(key, 'absent'))}, and {shown(before.get(key, 'absent'))} in the checkpoint"
        for key in keys[:_MAX_LISTED_CHANGES]
    ]
    return "; ".join(texts) + (f" and {len(keys) - len(texts)} more" if len(keys) > len(texts) else "")


def open_workdir(workdir: Path, config: StageConfig, log: Callable[[str], None] = logger.warning) -> None:
    """Creates a stage's folder, or checks that it holds the same run, and writes the config into it.

    Args:
        workdir: the stage's folder.
        config: the config of the run that starts or resumes.
        log: see `read_config`.

    Raises:
        ConfigError: the folder is not writable, or holds a run whose config differs in keys that must not change
            between starts; then nothing is written.
    """
    if (workdir / CONFIG_FILE).exists() or saved_config(workdir) is not None:
        _check_same_run(workdir, config, log)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if multihost.is_main_process():
            _write_config(workdir, config)
    except OSError as error:
        raise not_writable_error(workdir, error) from error


def keep_own_values(workdir: Path, config: StageConfig) -> StageConfig:
    """Returns the config of a run that starts or resumes, with the values that a run keeps from its start.

    Args:
        workdir: the stage's folder.
        config: the config that it is started with.

    Raises:
        ConfigError: as `read_config`, if the folder has a config.
    """
    if not (workdir / CONFIG_FILE).exists():
        return config
    before, now = (flatten(to_json(each)).get(_KEPT) for each in (read_config(workdir), config))
    if None in (before, now) or before == now:
        return config
    logger.warning(
        "%s stays %s, as the run in %s began: start another --workdir to train with %s", _KEPT, before, workdir, now
    )
    return config.with_changes({_KEPT: before})


def not_writable_error(workdir: Path, error: OSError) -> ConfigError:
    """Returns the error for a stage's folder that cannot be written, with the operating system's reason."""
    return ConfigError(f"--workdir {str(workdir)!r} cannot be written ({error.strerror}): give another folder")


def _check_same_run(workdir: Path, config: StageConfig, log: Callable[[str], None]) -> None:
    """Checks that a config differs from that of a stage's folder only in keys that may change between starts.

    Raises:
        ConfigError: with the keys that must not change, and their old and new values.
    """
    # `~/photos` and `/home/ann/photos` are the same; a `~USER` that this machine does not have stays as it is
    saved = read_config(workdir, log)
    before, now = (flatten(to_json(map_paths(one, os.path.expanduser))) for one in (saved, config))
    # keys that another source or network has, or has not, follow from it
    groups = {tag.split(".")[0] for tag in ("data.source", "model.network") if before[tag] != now[tag]}
    replaced = {key for key in before.keys() ^ now.keys() if key.split(".")[0] in groups}
    forbidden = [
        change
        for key, change in sorted(changes(before, now).items())
        if not _is_changeable(key) and key not in replaced
    ]
    if forbidden:
        raise ConfigError(
            f"{str(workdir)!r} holds a run with another config: {'; '.join(forbidden[:_MAX_LISTED_CHANGES])}; "
            "give the config that the run was started with, or another --workdir"
        )
    _check_optimizer(workdir, config)
    size = "training.batch_size"
    check_batch_size(before[size], now[size], now["training.allow_batch_change"])


def _check_optimizer(workdir: Path, config: StageConfig) -> None:
    """Checks that the newest checkpoint has the state of the config's optimizer. Raises ConfigError otherwise."""
    key = "optimizer.name"
    copy = saved_config(workdir)  # not config.json, which may be of a start that was refused
    name = flatten(copy[1]).get(key) if copy is not None else None
    if name is not None and name != config.optimizer.name:
        raise ConfigError(
            f"{key} was {name!r} and is now {config.optimizer.name!r}, but the checkpoints in {str(workdir)!r} have "
            f"the state of {name!r}: resume with --config.{key}={name}, or start from their weights in another "
            f"--workdir, with --config.training.init_from={workdir}"
        )


def check_batch_size(before: int, now: int, allowed: bool) -> None:
    """Checks that a resumed run keeps its global batch size, unless a change is allowed.

    Args:
        before: `training.batch_size` of the run so far.
        now: `training.batch_size` from now on.
        allowed: `training.allow_batch_change`.

    Raises:
        ConfigError: the batch size has changed.
    """
    if before != now and not allowed:
        raise ConfigError(
            f"training.batch_size was {before} and is now {now}, but the position in the data is counted in batches: "
            f"resume with --config.training.batch_size={before}, or with --config.training.allow_batch_change=True, "
            f"which continues from the same example in batches of {now}; the learning rate and EMA schedules keep "
            "counting steps"
        )
