"""Cascades on the Hugging Face Hub: single files of a repository, from the Hub's cache here or downloaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from imagen_jax.errors import ConfigError, first_line, is_out_of_space
from imagen_jax.io.checksums import MANIFEST
from imagen_jax.io.tensor_files import pickle_files
from imagen_jax.io.text import printable
from imagen_jax.stages.published import INDEX

_REPO = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_NAME = re.compile(rf"(?P<repo>{_REPO})(@(?P<revision>[^@\s]+))?", re.ASCII)


class HubName(NamedTuple):
    """The name of a repository, `ORG/NAME`, and a branch, tag or commit of it; None for the main branch."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def parse_name(text: str) -> HubName | None:
    """Returns the name that a text of the form ORG/NAME or ORG/NAME@REVISION is; None if it has another form."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    match = _NAME.fullmatch(text)
    if match is None:
        return None
    try:
        validate_repo_id(match["repo"])
    except HFValidationError:
        return None
    return HubName(match["repo"], match["revision"])


def fetch(name: HubName, files: Sequence[str]) -> Path:
    """Returns the folder in the Hub's cache that has files of a repository; those that it lacks are downloaded.

    Args:
        name: of the repository; a revision that is a commit does not change.
        files: paths in the repository.

    Raises:
        ConfigError: there is no such repository, revision or file, access is denied, or the Hub cannot be reached.
    """
    import huggingface_hub

    try:
        folder = Path(huggingface_hub.snapshot_download(name.repo, revision=name.revision, allow_patterns=list(files)))
    except Exception as error:  # errors of the network, the Hub and the disk
        raise access_error(name, error) from error
    missing = [file for file in files if not (folder / file).is_file()]
    if INDEX in missing:
        raise _not_a_cascade(name)
    if MANIFEST in missing:
        raise ConfigError(
            f"{name} on the Hugging Face Hub has no {MANIFEST}, or its download did not finish: give the name of a "
            "cascade that imagen publish has written"
        )
    if missing:
        raise ConfigError(
            f"{name} on the Hugging Face Hub lacks {printable(', '.join(missing[:5]))}, or the Hub cannot be reached "
            "and the cache on this machine lacks them: run the same command again with a network, or publish it again"
        )
    return folder


def _not_a_cascade(name: HubName) -> ConfigError:
    """Returns the error for a repository without an index; it names pickled weights, as those of other programs."""
    import huggingface_hub

    try:
        files = huggingface_hub.list_repo_files(name.repo, revision=name.revision)
    except Exception:  # it is only for the message
        files = []
    pickled = pickle_files(files)
    has = f", but pickled weights ({printable(', '.join(pickled[:3]))}), which can run code" if pickled else ""
    return ConfigError(
        f"{name} on the Hugging Face Hub has no {INDEX}{has}: give the name of a cascade that imagen publish has "
        "written"
    )


def access_error(name: HubName, error: Exception) -> ConfigError:
    """Returns the error, in one sentence, for a request about a repository that failed."""
    from huggingface_hub import constants, errors

    page, what = f"{constants.ENDPOINT}/{name.repo}", f"{name} cannot be read from the Hugging Face Hub"
    log_in = "log in with `hf auth login`, or set $HF_TOKEN"
    if is_out_of_space(error):
        return ConfigError(
            f"{what}: no space is left in its cache, {constants.HF_HUB_CACHE}: free some, or set $HF_HOME"
        )
    if isinstance(error, errors.GatedRepoError):
        return ConfigError(f"{what}: its authors ask you to agree to their conditions; do so at {page}, and {log_in}")
    if isinstance(error, errors.RevisionNotFoundError):
        return ConfigError(f"{what}: it has no branch, tag or commit {name.revision!r}; see {page}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ConfigError(
            f"{name} is neither a folder on this machine nor a model on the Hugging Face Hub ({constants.ENDPOINT}): "
            f"correct the name; if it is private, {log_in}"
        )
    if constants.HF_HUB_OFFLINE or isinstance(error, errors.LocalEntryNotFoundError):
        reason = "$HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
        return ConfigError(
            f"{name} is not a folder on this machine, and not in the cache of the Hugging Face Hub, and {reason}: "
            f"correct the name, or run `hf download {name.repo}` where there is a network, and copy "
            f"{constants.HF_HUB_CACHE}"
        )
    reason = f"{type(error).__name__}: {printable(first_line(error))[:200]}"
    return ConfigError(f"{what} ({reason}): run the same command again, or give a folder")
