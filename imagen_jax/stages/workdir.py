"""A stage's folder and the config in it, which is checked whenever a run resumes there.

WORKDIR/config.json        the stage's full config, as JSON; nothing in it is executed
WORKDIR/checkpoints/       see `stages/checkpoints.py`
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from imagen_jax.config.load import from_json, to_json
from imagen_jax.config.paths import map_paths
from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import ConfigError
from imagen_jax.io.atomic import read_json, write_json
from imagen_jax.io.bucket import BucketError
from imagen_jax.io.changes import changes, flatten
from imagen_jax.parallel import multihost
from imagen_jax.stages.checkpoints import saved_optimizer

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
# every version has saved these keys, and no default could replace them
_REQUIRED_KEYS = ("image_size", "channels", "data", "text", "model", "diffusion")
# A run may resume with other values of these keys or groups; any other change would make it a different experiment.
_CHANGEABLE = {
    *("training", "optimizer", "sampling", "mesh", "sharding_rules", "text.cache"),
    # where the same images are, how fast they are read, and how many of them may be corrupt
    *("data.path", "data.cache_dir", "data.threads", "data.prefetch", "data.max_corrupt", "data.allow_no_captions"),
}
# Keys of changeable groups that must stay: what is trained and where it started from.
_FIXED = {"training.trainable", "training.init_from", "training.init_weights", "training.init_partial"}
_MAX_LISTED_CHANGES = 5
# A run keeps the value that it began with, whatever default the config that it resumes with takes from this version.
_KEPT = "data.transform.convert_profile"


def _write_config(workdir: Path, config: StageConfig) -> None:
    """Writes a config into a stage's folder, atomically. Raises OSError."""
    write_json(workdir / CONFIG_FILE, to_json(config))


def read_config(workdir: Path) -> StageConfig:
    """Returns the config of a stage's folder.

    Args:
        workdir: the folder of a training run.

    Raises:
        ConfigError: the folder does not exist, has no config, or has one that is damaged or not valid.
    """
    try:
        exists = workdir.is_dir()
    except BucketError as error:
        raise ConfigError(f"the stage folder cannot be read: {error}") from error
    if not exists:
        raise ConfigError(f"stage folder {str(workdir)!r} does not exist: give the --workdir of a training run")
    file = str(workdir / CONFIG_FILE)
    try:
        tree = read_json(workdir / CONFIG_FILE)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{str(workdir)!r} is not a stage folder, it has no {CONFIG_FILE}: give the --workdir of a training run"
        ) from error
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file!r} is not valid JSON: restore it from a checkpoint's metadata") from error
    missing = [key for key in _REQUIRED_KEYS if not isinstance(tree, dict) or key not in tree]
    if missing:
        raise ConfigError(
            f"{file!r} does not describe a stage, {', '.join(missing)} missing: restore it from a checkpoint's metadata"
        )
    try:
        return from_json(tree)
    except ConfigError as error:
        raise ConfigError(*(f"{file!r}: {problem}" for problem in error.problems)) from error


def open_workdir(workdir: Path, config: StageConfig) -> None:
    """Creates a stage's folder, or checks that it holds the same run, and writes the config into it.

    Args:
        workdir: the stage's folder.
        config: the config of the run that starts or resumes.

    Raises:
        ConfigError: the folder is not writable, or holds a run whose config differs in keys that must not change
            between starts; then nothing is written.
    """
    if (workdir / CONFIG_FILE).exists():
        _check_same_run(workdir, config)
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


def _check_same_run(workdir: Path, config: StageConfig) -> None:
    """Checks that a config differs from that of a stage's folder only in keys that may change between starts.

    Raises:
        ConfigError: with the keys that must not change, and their old and new values.
    """
    # `~/photos` and `/home/ann/photos` are the same; a `~USER` that this machine does not have stays as it is
    before, now = (flatten(to_json(map_paths(one, os.path.expanduser))) for one in (read_config(workdir), config))
    # keys that another source or network has, or has not, follow from it
    groups = {tag.split(".")[0] for tag in ("data.source", "model.network") if before[tag] != now[tag]}
    replaced = {key for key in before.keys() ^ now.keys() if key.split(".")[0] in groups}
    forbidden = [
        change
        for key, change in sorted(changes(before, now).items())
        if key in _FIXED or (key not in _CHANGEABLE and key.split(".")[0] not in _CHANGEABLE)
        if key not in replaced
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
    name = saved_optimizer(workdir)
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
