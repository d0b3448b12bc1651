"""What a converted stage keeps of its pipeline, so that the same files can be written again: stage_N/diffusers.json."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from imagen_jax.conversion import weight_files
from imagen_jax.conversion.pipeline_folder import CLASSES, SMALL_COMPONENTS, PipelineFolder, component, license_files
from imagen_jax.conversion.weight_files import WeightFiles
from imagen_jax.errors import ConfigError
from imagen_jax.io.tensor_files import INDEX_FILE, SINGLE_FILE, TensorFiles
from imagen_jax.io.text import printable
from imagen_jax.stages.published import INDEX, SAFETY_CHECKER

FORMAT = 1
_WATERMARKER = "watermarker"  # a component that is not converted
_PATH = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def _check_path(path: str) -> str:
    if not _PATH.fullmatch(path):
        raise ValueError("it is not the path of a file in a pipeline")
    return path


_FilePath = Annotated[str, AfterValidator(_check_path)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class TensorFile(_Part):
    """A file of the U-Net's weights: the texts in its header, and the dtype of each tensor."""

    metadata: dict[str, str]
    tensors: dict[str, Literal["F64", "F32", "BF16", "F16"]]


class Origin(_Part):
    """What is kept of a pipeline.

    Attributes:
        format: of the file.
        name: of the pipeline, on the Hub or of its folder.
        class_name: of the pipeline.
        license: the fields about it in the header of the pipeline's card.
        texts: the contents of small files, by path in the pipeline.
        unet: the files of the U-Net's weights, by name in `unet`.
        text_encoder: names in the pipeline's `text_encoder` of files that the cascade has under other names, by those;
            None for a pipeline without a text encoder.
        safety_checker: likewise of the pipeline's `safety_checker`; None if the cascade does not have it.
    """

    format: int
    name: str
    class_name: Literal[tuple(CLASSES)]  # type: ignore[valid-type]  # they are listed once
    license: dict[str, str]
    texts: dict[_FilePath, str]
    unet: dict[_FilePath, TensorFile] = Field(min_length=1)
    text_encoder: dict[_FilePath, _FilePath] | None
    safety_checker: dict[_FilePath, _FilePath] | None = None


def describe(
    source: PipelineFolder,
    files: TensorFiles,
    text_encoder: dict[str, str] | None,
    safety_checker: dict[str, str] | None,
) -> Origin:
    """Returns what is kept of a pipeline.

    Args:
        source: the pipeline.
        files: the weights of its U-Net.
        text_encoder: see `Origin`.
        safety_checker: see `Origin`.

    Raises:
        ConfigError: a tensor has another type than floats.
    """
    by_file: dict[str, dict[str, str]] = {file: {} for file in files.metadata}
    for name, file in files.files.items():
        by_file[file][name] = files.dtypes[name]
    return validate(
        {
            "format": FORMAT,
            "name": source.short_name,
            "class_name": source.class_name,
            "license": source.license,
            "texts": _texts(source),
            "unet": {file: {"metadata": files.metadata[file], "tensors": by_file[file]} for file in by_file},
            "text_encoder": text_encoder,
            "safety_checker": safety_checker,
        },
        source.file("unet"),
    )


def _texts(source: PipelineFolder) -> dict[str, str]:
    """Returns the contents of a pipeline's small files, by path."""
    paths = [source.folder / INDEX, source.folder / "unet/config.json", *license_files(source.folder)]
    if source.weights.is_index:
        paths.append(source.folder / "unet" / source.weights.file)
    for name in SMALL_COMPONENTS:
        if component(source.index, name):
            paths += sorted((source.folder / name).glob("*.json"))
    return {path.relative_to(source.folder).as_posix(): _read_text(path) for path in paths}


def _read_text(path: Path) -> str:
    """Returns the content of a config, or of a license in whatever encoding. Raises ConfigError."""
    data = path.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if path.suffix != ".json":
            return data.decode("latin-1")
        raise ConfigError(f"{path} is not in UTF-8 ({error}): copy it again") from error


def file_names(weights: WeightFiles | None) -> dict[str, str]:
    """Returns what files of a model's weights are called in a pipeline, by the names that they are read by."""
    if weights is None or not weights.variant:
        return {}
    return {(INDEX_FILE if weights.is_index else SINGLE_FILE): weights.file}


def kept_components(index: dict[str, Any], safety_checker: bool) -> dict[str, Any]:
    """Returns a model_index.json in which the components that are not converted are absent.

    Args:
        index: of the pipeline.
        safety_checker: whether the safety checker is there.
    """
    absent = (_WATERMARKER,) if safety_checker else (_WATERMARKER, SAFETY_CHECKER)
    return {key: [None, None] if key in absent else value for key, value in index.items()}


def validate(tree: Any, where: str) -> Origin:
    """Returns the typed content of a diffusers.json. Raises ConfigError."""
    try:
        origin = Origin.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        place = printable(".".join(map(str, first["loc"])))[:200]
        raise ConfigError(f"{where} cannot be converted ({place}: {printable(first['msg'])[:200]})") from error
    if origin.format > FORMAT:
        raise ConfigError(
            f"{where} has format {origin.format}, and this version of imagen_jax reads {FORMAT}: upgrade it, pip "
            "install --upgrade imagen_jax"
        )
    return origin


assert SINGLE_FILE.partition(".")[0] == weight_files.TEXT_ENCODER  # the stem of the names above
