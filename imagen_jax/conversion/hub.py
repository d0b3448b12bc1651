"""Pipelines of diffusers on the Hugging Face Hub: the files of one variant, from the Hub's cache or downloaded."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from imagen_jax.conversion import weight_files
from imagen_jax.conversion.weight_files import WeightFiles
from imagen_jax.errors import ConfigError
from imagen_jax.io.hub import HubName, access_error
from imagen_jax.io.tensor_files import read_weight_map
from imagen_jax.stages.published import INDEX, SAFETY_CHECKER
from imagen_jax.text.null_text import FILE as NULL_TEXT

_COMPONENTS = {"unet": weight_files.UNET, "text_encoder": weight_files.TEXT_ENCODER}
# Small files; tokenizers have no others. Weights of other components, and pickled ones, are never downloaded.
_SMALL = ("README.md", "LICENSE*", INDEX, "*/*.json", "tokenizer/*", f"text_encoder/{NULL_TEXT}")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


class RemoteFile(NamedTuple):
    """What the Hub says of a file: its size in bytes, and what identifies its content."""

    size: int
    blob: str


class FetchedPipeline(NamedTuple):
    """A pipeline's folder in the Hub's cache, and all files that the Hub lists, by path; none if it was not asked."""

    folder: Path
    files: dict[str, RemoteFile]


def fetch_pipeline(name: HubName, variant: str, text_encoder: bool, safety_checker: bool) -> FetchedPipeline:
    """Returns the folder in the Hub's cache that has a pipeline's files of one variant.

    Args:
        name: of the repository.
        variant: of the weights, see `weight_files.choose`.
        text_encoder: whether its text encoder is needed, which is larger than the others.
        safety_checker: whether its safety checker, if it names one, will be needed, see `fetch_safety_checker`.

    Raises:
        ConfigError: there is no such repository or variant, its conditions are not accepted, or the Hub cannot be
            reached and the cache does not have it.
    """
    import huggingface_hub

    try:
        entries = list(huggingface_hub.list_repo_tree(name.repo, revision=name.revision, recursive=True))
    except Exception as error:  # errors of the network and the Hub
        cached = _cached(name)
        if cached is None:
            raise access_error(name, error) from error
        return FetchedPipeline(cached, {})
    files = {
        entry.path: RemoteFile(entry.size, entry.blob_id)
        for entry in entries
        if isinstance(entry, huggingface_hub.hf_api.RepoFile)
    }
    names = list(files)
    if INDEX not in names:
        raise ConfigError(f"{name} on the Hugging Face Hub has no {INDEX}: give the name of a diffusers pipeline")
    weights = []
    for component in _COMPONENTS if text_encoder else ("unet",):
        inside = _files_of(component, names)
        if inside:
            chosen = weight_files.choose(inside, _COMPONENTS[component], variant, component, name.repo)
            weights.append((component, chosen))
    patterns = [*_SMALL, *(f"{component}/{chosen.file}" for component, chosen in weights)]
    checker = _choose_checker(names, weights[0][1].variant if weights else "") if safety_checker else None
    folder = _download(name, patterns, [] if checker is None else [f"{SAFETY_CHECKER}/{checker.file}"])
    shards = [
        f"{component}/{file}"
        for component, chosen in weights
        if chosen.is_index
        for file in set(read_weight_map(folder / component / chosen.file).values())
    ]
    if shards:
        folder = _download(HubName(name.repo, folder.name), [*patterns, *sorted(shards)])
    return FetchedPipeline(folder, files)


def fetch_safety_checker(name: HubName, folder: Path, variant: str) -> None:
    """Downloads the weights of a pipeline's safety checker, if it has any that are read.

    Args:
        name: of the repository.
        folder: from `fetch_pipeline`.
        variant: of the U-Net's weights, see `weight_files.choose_near`.

    Raises:
        ConfigError: they cannot be downloaded.
    """
    import huggingface_hub

    commit = HubName(name.repo, folder.name)
    try:
        names = huggingface_hub.list_repo_files(commit.repo, revision=commit.revision)
    except Exception:  # without a network, what the cache has counts
        return
    chosen = _choose_checker(names, variant)
    if chosen is None:
        return
    patterns = [f"{SAFETY_CHECKER}/{chosen.file}"]
    _download(commit, patterns)
    if chosen.is_index:
        shards = set(read_weight_map(folder / SAFETY_CHECKER / chosen.file).values())
        _download(commit, [*patterns, *(f"{SAFETY_CHECKER}/{file}" for file in sorted(shards))])


def _files_of(component: str, names: list[str]) -> list[str]:
    """Returns the names of a component's files, of those of all files of a repository."""
    return [name.partition("/")[2] for name in names if name.startswith(f"{component}/")]


def _choose_checker(names: list[str], variant: str) -> WeightFiles | None:
    """Returns the weights of the safety checker among all files of a repository; None if it has none."""
    return weight_files.choose_near(_files_of(SAFETY_CHECKER, names), weight_files.SAFETY_CHECKER, variant)


def _cached(name: HubName) -> Path | None:
    """Returns the folder of a repository in the cache, which may lack files; None without one."""
    import huggingface_hub

    try:
        # without patterns it would have to have every file of the repository
        folder = huggingface_hub.snapshot_download(
            name.repo, revision=name.revision, allow_patterns=[INDEX], local_files_only=True
        )
        return Path(folder)
    except Exception:  # the error of the request is that which is reported
        return None


def _download(name: HubName, patterns: list[str], later: Sequence[str] = ()) -> Path:
    """Returns the folder in the cache with the files that match, but for pickled ones.

    Raises ConfigError; where a license has to be accepted, it says how to download them, and those of `later`.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    try:
        folder = huggingface_hub.snapshot_download(
            name.repo, revision=name.revision, allow_patterns=patterns, ignore_patterns=list(_PICKLED)
        )
    except errors.GatedRepoError as error:
        include = " ".join(f"--include {shlex.quote(pattern)}" for pattern in (*patterns, *later))
        folder = name.repo.partition("/")[2]
        raise ConfigError(
            f"{name} cannot be read from the Hugging Face Hub: its authors ask you to agree to their license; do so at "
            f"{constants.ENDPOINT}/{name.repo}, log in with `hf auth login` or set $HF_TOKEN, and run the same command "
            f"again, or, where there is a network, `hf download {name.repo} {include} --local-dir {folder}`, copy that "
            f"folder here and give it as --from={folder}"
        ) from error
    except Exception as error:  # errors of the network, the Hub and the disk
        raise access_error(name, error) from error
    return Path(folder)
