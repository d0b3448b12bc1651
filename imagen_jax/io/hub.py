"""Names of repositories on the Hugging Face Hub, and errors of requests about them."""

from __future__ import annotations

import re
from typing import NamedTuple

from imagen_jax.errors import ConfigError, first_line, is_out_of_space
from imagen_jax.io.text import printable

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
