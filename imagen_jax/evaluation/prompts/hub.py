"""Files of prompts in data sets on the Hugging Face Hub: from the Hub's cache here, or downloaded."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.prompts.formats import SUFFIXES
from imagen_jax.io.hub import HubName, access_error, parse_name
from imagen_jax.io.text import printable

_MAX_NAMED = 5  # files that a message names


def is_hub_name(name: str) -> bool:
    """Returns whether a name has the form ORG/NAME, ORG/NAME@REVISION or that of a file in it, ORG/NAME:FILE."""
    return parse_name(name.partition(":")[0]) is not None


def fetch_prompts(name: str) -> Path:
    """Returns the file of prompts of a data set on the Hub.

    Args:
        name: ORG/NAME or ORG/NAME@REVISION, if it has one such file, or either with :FILE.

    Raises:
        ConfigError: there is no such data set, or it has no such file, or several.
    """
    import huggingface_hub

    repository, _, file = name.partition(":")
    hub_name = parse_name(repository)
    assert hub_name is not None
    file = file or _only_file(hub_name)
    try:
        return Path(
            huggingface_hub.hf_hub_download(hub_name.repo, file, revision=hub_name.revision, repo_type="dataset")
        )
    except Exception as error:  # errors of the network, the Hub and the disk
        raise access_error(hub_name, error) from error


def _only_file(name: HubName) -> str:
    """Returns the one file of prompts of a data set. Raises ConfigError."""
    import huggingface_hub

    try:
        files = huggingface_hub.list_repo_files(name.repo, revision=name.revision, repo_type="dataset")
    except Exception as error:
        raise access_error(name, error) from error
    prompts = [file for file in files if PurePosixPath(file).suffix in SUFFIXES]
    if len(prompts) != 1:
        listed = printable(", ".join(prompts[:_MAX_NAMED])) or f"none that end in {', '.join(SUFFIXES)}"
        raise ConfigError(
            f"the data set {name} on the Hugging Face Hub has {len(prompts)} files of prompts ({listed}): give one as "
            f"{name}:FILE"
        )
    return prompts[0]
