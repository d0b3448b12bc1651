"""Whether a second stage, whose text encoder is not downloaded, has that of the first: from all that is known of it."""

from __future__ import annotations

import logging
from pathlib import Path

from imagen_jax.conversion import weight_files
from imagen_jax.conversion.pipeline_folder import PipelineFolder
from imagen_jax.errors import ConfigError
from imagen_jax.io.text import printable
from imagen_jax.text.t5_weights import read_config

_ENCODER = "text_encoder"
_VOCABULARIES = ("spiece.model", "tokenizer.json")  # the first that both have is compared

logger = logging.getLogger(__name__)


def check_shared_encoder(first: PipelineFolder, second: PipelineFolder) -> None:
    """Checks that a pipeline without weights of a text encoder can use that of the stage before it.

    Their configs and vocabularies are compared and, by the Hub's list of files, the weights: by content where both are
    on the Hub, by size where one is in a folder. A warning says if the weights could not be compared.

    Raises:
        ConfigError: they differ, or a config cannot be read.
    """
    difference = _config_difference(first, second) or _vocabulary_difference(first, second)
    names = [path.name for path in _weights(first)]
    unknown = [name for name in names if f"{_ENCODER}/{name}" not in second.remote]
    differing = [name for name in names if name not in unknown and not _is_same(first, second, f"{_ENCODER}/{name}")]
    if differing:
        difference = difference or f"{printable(differing[0])} is another file"
    if difference:
        raise ConfigError(
            f"{printable(second.name)!r} has another text encoder than {printable(first.name)!r} ({difference}), and "
            "the weights of one are here: download the complete pipeline, and give its folder, to convert both encoders"
        )
    if unknown:
        logger.warning(
            "the weights of the text encoder of %r were not compared with those of %r, which both stages use: %s",
            second.name,
            first.name,
            f"the Hub lists no {unknown[0]}" if second.remote else "they are not here",
        )


def _config_difference(first: PipelineFolder, second: PipelineFolder) -> str:
    """Returns the first field of the encoders' config.json that differs; "" for none. Raises ConfigError."""
    if not (second.folder / _ENCODER / "config.json").is_file():
        return ""
    ours, theirs = (read_config(source.folder / _ENCODER) for source in (first, second))
    differing = [name for name in ours if ours[name] != theirs[name]]
    return f"{differing[0]} {theirs[differing[0]]} instead of {ours[differing[0]]}" if differing else ""


def _vocabulary_difference(first: PipelineFolder, second: PipelineFolder) -> str:
    for name in _VOCABULARIES:
        paths = [source.folder / "tokenizer" / name for source in (first, second)]
        if all(path.is_file() for path in paths):
            return "" if paths[0].read_bytes() == paths[1].read_bytes() else f"another {name}"
    return ""


def _weights(source: PipelineFolder) -> list[Path]:
    assert source.text_encoder is not None
    return weight_files.parts(source.folder / _ENCODER, source.text_encoder)


def _is_same(first: PipelineFolder, second: PipelineFolder, name: str) -> bool:
    """Returns whether a file of the weights that the Hub lists of the second is that of the first."""
    ours, theirs = first.remote.get(name), second.remote[name]
    return ours.blob == theirs.blob if ours is not None else (first.folder / name).stat().st_size == theirs.size
