"""The safety checker of pipelines, which a cascade has once for all of its stages."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from imagen_jax.conversion import origin, weight_files
from imagen_jax.conversion.pipeline_folder import PipelineFolder, component
from imagen_jax.errors import ConfigError
from imagen_jax.images.clip_inputs import FILE as INPUTS_FILE
from imagen_jax.io.local_copy import copy_file
from imagen_jax.io.tensor_files import TensorFiles
from imagen_jax.io.text import printable
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.pipelines.safety_checker import SafetyChecker
from imagen_jax.stages.cascade_folder import weights_checksum
from imagen_jax.stages.published import INDEX, SAFETY_CHECKER, SafetyCheckerEntry

FEATURE_EXTRACTOR = "feature_extractor"

logger = logging.getLogger(__name__)


def choose(sources: Sequence[PipelineFolder], is_wanted: bool) -> PipelineFolder | None:
    """Returns the first pipeline with a safety checker; None if none names one, or it is not wanted.

    Raises:
        ConfigError: one names a safety checker, and none has its weights.
    """
    named = _named(sources)
    if not named or not is_wanted:
        return None
    for source in named:
        if source.safety_checker is not None:
            return source
    first = named[0]
    raise ConfigError(
        f"{first.file(INDEX)} names a safety checker, and {first.file(SAFETY_CHECKER)} has no weights as safetensors: "
        f"download them, `hf download ORG/NAME --include '{SAFETY_CHECKER}/*.json' --include "
        f"'{SAFETY_CHECKER}/*.safetensors' --include '{FEATURE_EXTRACTOR}/*'` with the name of the pipeline on the "
        "Hub, and copy them there, or give --no_safety_checker to convert without it"
    )


def _named(sources: Sequence[PipelineFolder]) -> list[PipelineFolder]:
    return [source for source in sources if component(source.index, SAFETY_CHECKER)]


def copy(checked: PipelineFolder | None, sources: Sequence[PipelineFolder], cascade: Path) -> SafetyCheckerEntry | None:
    """Copies the safety checker of a pipeline into a cascade, and returns its entry in the index.

    Args:
        checked: from `choose`.
        sources: all pipelines.
        cascade: the folder.

    Raises:
        ConfigError: it cannot be read.
    """
    named = _named(sources)
    if checked is None or checked.safety_checker is None:
        return SafetyCheckerEntry(model=_model(named[0])) if named else None
    _warn_if_others_differ(checked, named)
    source, target = checked.folder / SAFETY_CHECKER, cascade / SAFETY_CHECKER
    renamed = {there: here for here, there in origin.file_names(checked.safety_checker).items()}
    names = {path.name for path in weight_files.parts(source, checked.safety_checker)}
    for name in sorted(names | {checked.safety_checker.file, "config.json"}):
        if not (source / name).is_file():
            raise ConfigError(f"{source} has no {name}: copy it there")
        copy_file(source / name, target / renamed.get(name, name))
    inputs = checked.folder / FEATURE_EXTRACTOR / INPUTS_FILE
    if inputs.is_file():
        copy_file(inputs, target / INPUTS_FILE)
    try:
        SafetyChecker(target, make_mesh({"data": 1, "fsdp": 1}, jax.local_devices()[:1]))
    except ConfigError as error:
        moved = {str(target / INPUTS_FILE): str(inputs), str(target): str(source)}
        problems = list(error.problems)
        for here, there in moved.items():
            problems = [problem.replace(here, there) for problem in problems]
        raise ConfigError(*problems) from error
    return SafetyCheckerEntry(model=_model(checked), checksum=weights_checksum(target), folder=SAFETY_CHECKER)


def _model(source: PipelineFolder) -> str:
    return f"{source.short_name}/{SAFETY_CHECKER}"


def names_in(source: PipelineFolder, checked: PipelineFolder | None) -> dict[str, str] | None:
    """Returns what files of the cascade's safety checker are called in a pipeline, by their names in the cascade.

    None if the pipeline has no safety checker. One on the Hub, whose own was not downloaded, gets that of `checked`.
    """
    if checked is None or not component(source.index, SAFETY_CHECKER):
        return None
    return origin.file_names(checked.safety_checker)


def _warn_if_others_differ(checked: PipelineFolder, named: Sequence[PipelineFolder]) -> None:
    """Logs which pipelines have another safety checker than that which the cascade gets."""
    for other in named:
        if other is not checked and other.safety_checker is not None and not _are_equal(checked, other):
            logger.warning(
                "%s has another safety checker than %s: the cascade has the latter",
                printable(other.short_name),
                printable(checked.short_name),
            )


def _are_equal(*sources: PipelineFolder) -> bool:
    """Returns whether the safety checkers of two pipelines have the same tensors."""
    ours, theirs = (
        TensorFiles(weight_files.parts(source.folder / SAFETY_CHECKER, source.safety_checker))
        for source in sources
        if source.safety_checker is not None
    )
    if ours.shapes != theirs.shapes:
        return False
    parts = ((name, tuple(map(slice, shape))) for name, shape in ours.shapes.items())
    return all(np.array_equal(ours.read(*part), theirs.read(*part)) for part in parts)
