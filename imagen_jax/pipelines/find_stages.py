"""From what `--stages` names to the folders of stages: of runs, of published cascades, here or on the Hub."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from imagen_jax.errors import ConfigError
from imagen_jax.io import checksums
from imagen_jax.io.bucket import BucketError
from imagen_jax.io.hub import HubName, parse_name
from imagen_jax.io.local_copy import local_folder
from imagen_jax.io.paths import as_path, bucket_path
from imagen_jax.io.tensor_files import pickle_files
from imagen_jax.io.text import printable
from imagen_jax.pipelines import hub
from imagen_jax.stages.checkpoints import CHECKPOINTS, saved_config
from imagen_jax.stages.published import (
    CONFIG,
    INDEX,
    STAGE_FOLDER,
    is_published,
    is_published_stage,
    listed_files,
    read_index,
    verify_safety_checker,
    verify_text_encoder,
)
from imagen_jax.stages.stage_folder import read_config
from imagen_jax.stages.workdir import CONFIG_FILE

# cascades that ship with the package, by name
CASCADES = Path(__file__).parent / "cascades"
SHIPPED = {"shapes": "one to four colored shapes, 64×64"}
_ONE_STAGE = re.compile(rf"(.+)/({STAGE_FOLDER.pattern})")

logger = logging.getLogger(__name__)


def find_stages(
    names: str | Path | Sequence[str | Path],
    *,
    weights: bool = True,
    text_encoder: bool = True,
    safety_checker: bool = False,
) -> list[Path]:
    """Returns the folders of the stages of a cascade, base first.

    Args:
        names: what to look for, one or several, whose stages follow each other. Each is the folder of a stage; a folder
            of such folders, which are taken smallest image first; a published cascade, as a folder, the name of one
            that ships with the package, or ORG/NAME or ORG/NAME@REVISION on the Hugging Face Hub; or one of its stages,
            as NAME/stage_0. A name is a folder, if there is one, before it is looked for on the Hub.
        weights: whether the weights are needed; without, only indices and configs are downloaded.
        text_encoder: whether text encoders inside of published cascades are needed; they are verified.
        safety_checker: likewise safety checkers.

    Returns:
        Folders to read with `stages/stage_folder.py`; of published cascades, on a disk of this machine.

    Raises:
        ConfigError: a name leads nowhere, or to what is no stage.
    """
    given = [names] if isinstance(names, (str, os.PathLike)) else list(names)
    find = _Finder(weights, text_encoder, safety_checker)
    try:
        return [folder for name in given for folder in find(name)]
    except BucketError as error:
        raise ConfigError(f"the stage folder cannot be read: {error}") from error


class _Finder:
    """Finds the stages of one name; arguments as `find_stages`."""

    def __init__(self, weights: bool, text_encoder: bool, safety_checker: bool) -> None:
        self._weights, self._text_encoder, self._safety_checker = weights, text_encoder, safety_checker

    def __call__(self, name: str | Path) -> list[Path]:
        """Returns the folders of the stages. Raises ConfigError."""
        if isinstance(name, str):
            base, only = _split_stage(name)
            if base in SHIPPED:
                if Path(base).is_dir():
                    logger.warning("%r is the cascade that ships with the package; the folder is ./%s", base, base)
                return self._published(lambda names: CASCADES / base, only)
        path = as_path(name)
        if path.is_file():
            raise _file_error(path)
        if path.is_dir():
            return self._in_folder(path)
        if isinstance(name, str) and bucket_path(path) is None:
            base, only = _split_stage(name)
            repository = parse_name(base)
            if repository is not None:
                return self._on_hub(repository, only)
        raise ConfigError(
            f"{printable(str(name))!r} does not exist as a stage folder, is none of the cascades that ship with the "
            f"package ({', '.join(SHIPPED)}), and is not ORG/NAME, a name on the Hugging Face Hub: give the --workdir "
            "of a training run, a folder of imagen publish, or such a name"
        )

    def _in_folder(self, folder: Path) -> list[Path]:
        """Returns the stages in a folder that exists."""
        if is_published(folder):
            return self._published(_fetch_from(folder), None)
        if is_published_stage(folder):
            return self._published(_fetch_from(folder.parent), folder.name)
        return _run_folders(folder)

    def _on_hub(self, name: HubName, only: str | None) -> list[Path]:
        """Returns the stages of a cascade on the Hub, or one of them."""
        folder = hub.fetch(name, [INDEX, checksums.MANIFEST])
        commit = HubName(name.repo, folder.name)  # the branch may move meanwhile
        return self._published(lambda names: hub.fetch(commit, names), only)

    def _published(self, fetch: Callable[[Sequence[str]], Path], only: str | None) -> list[Path]:
        """Returns the stages of a published cascade.

        Args:
            fetch: returns the cascade's folder on a disk of this machine, with these files.
            only: the stage to return; None for all.
        """
        folder = fetch([INDEX, checksums.MANIFEST])
        index = read_index(folder)
        entries = [entry for entry in index.stages if only in (None, entry.folder)]
        if not entries:
            raise ConfigError(f"{folder / INDEX} lists no {only}: give one of its stages, or the cascade")
        parts = {entry.folder for entry in entries}
        names = [f"{part}/{CONFIG}" for part in parts]
        if self._weights:
            names = listed_files(folder, parts)
        if self._text_encoder:
            names += listed_files(folder, {entry.text_encoder.folder or "" for entry in entries})
        if self._safety_checker and index.safety_checker is not None:
            names += listed_files(folder, {index.safety_checker.folder or ""})
        folder = fetch(names)
        stages = [folder / entry.folder for entry in entries]
        if self._text_encoder:
            for stage in stages:
                verify_text_encoder(stage)
        if self._safety_checker:
            verify_safety_checker(stages[0])
        return stages


def _split_stage(name: str) -> tuple[str, str | None]:
    """Returns (cascade, stage) of a name such as shapes/stage_0; the stage is None in the name of a cascade."""
    match = _ONE_STAGE.fullmatch(name)
    return (match[1], match[2]) if match else (name, None)


def _fetch_from(folder: Path) -> Callable[[Sequence[str]], Path]:
    """Returns a function that returns a cascade's folder on a disk: itself, or a copy of some files of a bucket."""
    return lambda names: local_folder(folder, set(names).__contains__)


def _run_folders(folder: Path) -> list[Path]:
    """Returns a folder if it is that of a training run, else such folders in it, smallest image first.

    Runs of codecs are left out: stages of latents have their codecs in them.
    """
    if _is_run_folder(folder):
        return [folder]
    found = [
        path.parent for path in sorted(folder.glob(f"*/{CHECKPOINTS}")) if path.is_dir() and _is_run_folder(path.parent)
    ]
    if found:
        configs = {path: read_config(path, lambda text: None) for path in found}
        stages = [path for path in found if not configs[path].is_codec]
        return sorted(stages or found, key=lambda path: configs[path].image_hw)
    pickled = pickle_files(path.name for path in folder.iterdir())
    if pickled:
        raise ConfigError(
            f"{str(folder)!r} has pickled weights ({printable(', '.join(pickled[:3]))}), and unpickling can run code: "
            "give the --workdir of a training run, or a folder of imagen publish"
        )
    if (folder / checksums.MANIFEST).is_file():
        raise ConfigError(
            f"{str(folder)!r} has a {checksums.MANIFEST} and no {INDEX}, as a published cascade that is not complete: "
            "copy or download it again"
        )
    raise ConfigError(
        f"{str(folder)!r} is not a stage folder and has none in it: give the --workdir of a training run, a folder of "
        "such folders, or a folder of imagen publish"
    )


def _is_run_folder(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() or saved_config(folder) is not None


def _file_error(path: Path) -> ConfigError:
    pickled = ": unpickling weights can run code" if pickle_files([path.name]) else ""
    return ConfigError(
        f"{printable(str(path))!r} is a file, and stages are folders{pickled}: give the --workdir of a training run, "
        "or a folder of imagen publish"
    )
