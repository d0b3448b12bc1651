"""Cascades on the Hugging Face Hub: single files of a repository, from the Hub's cache here or downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imagen_jax.errors import ConfigError
from imagen_jax.io.checksums import MANIFEST
from imagen_jax.io.hub import HubName, access_error
from imagen_jax.io.tensor_files import pickle_files
from imagen_jax.io.text import printable
from imagen_jax.stages.published import INDEX


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
