"""Pushes a published cascade to the Hugging Face Hub, as one commit."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import errors

from imagen_jax.errors import ConfigError, TrainingError
from imagen_jax.io.hub import HubName, access_error, parse_name
from imagen_jax.io.paths import file_sizes
from imagen_jax.stages.published import INDEX

# what an earlier version of the cascade may have, and this one may not
_REPLACED = ["stage_*/*", "text_encoder*/*"]


def check_push(text: str, private: bool, overwrite: bool) -> HubName:
    """Returns the repository to push to, before anything is made for it.

    Args:
        text: ORG/NAME.
        private: whether the repository is to be private.
        overwrite: whether a cascade that is there may be replaced.

    Raises:
        ConfigError: it is not such a name, nobody is logged in, the Hub cannot be reached, the repository has a cascade
            or is public although it is to be private.
    """
    name = parse_name(text)
    if name is None or name.revision is not None:
        raise ConfigError(f"--push {text!r} is not a name on the Hugging Face Hub: give it as ORG/NAME")
    if huggingface_hub.get_token() is None:
        raise ConfigError("--push needs a token of the Hugging Face Hub: log in with `hf auth login`, or set $HF_TOKEN")
    api = huggingface_hub.HfApi()
    try:
        info = api.model_info(name.repo)
    except errors.GatedRepoError as error:
        raise access_error(name, error) from error
    except errors.RepositoryNotFoundError:
        return name
    except Exception as error:  # errors of the network and the Hub
        raise access_error(name, error) from error
    if private and not info.private:
        raise ConfigError(
            f"--push {text!r} is a public model, and --private is given: make it private on the Hub first"
        )
    if not overwrite and any(file.rfilename == INDEX for file in info.siblings or ()):
        raise ConfigError(f"--push {text!r} has a cascade: give another name, or --overwrite to replace it")
    return name


def push(folder: Path, name: HubName, private: bool) -> str:
    """Uploads a published folder and returns the address of the commit.

    The commit is made when all files are uploaded: a push that is killed changes nothing.

    Args:
        folder: on a disk.
        name: of the repository, from `check_push`; it is created if it does not exist.
        private: whether a new one is private.

    Raises:
        TrainingError: the Hub does not answer, or refuses the upload.
    """
    api = huggingface_hub.HfApi()
    files = list(file_sizes(folder))
    # not by upload_folder, which may commit what is uploaded so far
    operations: list[Any] = [huggingface_hub.CommitOperationAdd(file, folder / file) for file in files]
    try:
        api.create_repo(name.repo, private=private or None, exist_ok=True)
        old = set(api.list_repo_files(name.repo)) - set(files)
        operations += [huggingface_hub.CommitOperationDelete(file) for file in sorted(old) if _is_replaced(file)]
        commit = api.create_commit(name.repo, operations, commit_message=f"Publish {folder.name}")
    except Exception as error:  # errors of the network and the Hub
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise TrainingError(
            f"{folder} is complete and could not be pushed to {name.repo} ({reason}): run "
            f"`hf upload {name.repo} {folder}`"
        ) from error
    return str(commit.commit_url)


def _is_replaced(file: str) -> bool:
    return any(fnmatch(file, pattern) for pattern in _REPLACED)
