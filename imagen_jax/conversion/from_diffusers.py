"""Converts pipelines of DeepFloyd IF in the format of diffusers to a published cascade, see `stages/published.py`.

Weights are read, transposed and written tensor by tensor; files of the text encoder are copied. The folder appears when
it is complete.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from imagen_jax.config.load import to_json
from imagen_jax.config.schema import StageConfig
from imagen_jax.conversion import origin, safety_checker, schedulers, unet_config, weight_files
from imagen_jax.conversion.card import write_card
from imagen_jax.conversion.pipeline_folder import PipelineFolder, component, license_files, open_pipeline
from imagen_jax.conversion.shared_encoder import check_shared_encoder
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import format_height_width
from imagen_jax.io.atomic import commit_folder, write_json
from imagen_jax.io.bucket import is_bucket
from imagen_jax.io.local_copy import copy_file
from imagen_jax.io.paths import as_path, file_sizes
from imagen_jax.io.tensor_files import SINGLE_FILE, TensorFiles, TensorSpec, mismatch_error, write_shards
from imagen_jax.io.text import printable
from imagen_jax.io.torch_layout import from_torch, stored_shape
from imagen_jax.models.if_names import parameter_path
from imagen_jax.parallel.sharding import ParamPath
from imagen_jax.stages.cascade_folder import check_out, new_folder, weights_checksum, write_index
from imagen_jax.stages.published import CONFIG, INDEX, ORIGIN, SEPARATOR, StageEntry, TextEncoderEntry, config_digest
from imagen_jax.stages.stage import build
from imagen_jax.text.encoder import load_encoder
from imagen_jax.text.null_text import FILE as NULL_TEXT
from imagen_jax.text.null_text import load_array, write_null_text
from imagen_jax.text.tokenizer import FILES as TOKENIZER_FILES

TEXT_LENGTH = 77  # tokens, with padding, which the network reads
MAX_SHARD_SIZE = 4 * 10**9  # bytes of a file
_DTYPES = ("F32", "BF16", "F16")  # of which float32 holds every value
# What diffusers' pipelines do unless they are told otherwise, in a first stage and in one that enlarges.
_STEPS, _GUIDANCE = (100, 50), (7.0, 4.0)
_ENLARGEMENT = 4  # of a super-resolution stage that is converted without the one before it

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ConvertSettings:
    """How pipelines are converted.

    Attributes:
        variant: of their weights, such as "fp16"; "none" for files without one in their names; "" for those that there
            are.
        dtype: what the cascade computes in, "bfloat16" or "float32"; weights are stored as float32.
        overwrite: whether a published cascade in the folder is replaced.
        low_res_size: of the images, in pixels, that a super-resolution stage enlarges which is converted alone; 0 for a
            fourth of its own size, as in DeepFloyd IF.
        null_text: the file of an embedding that replaces the empty caption, see `text/null_text.py`; "" for that of a
            pipeline that `to_diffusers` wrote, or none.
        safety_checker: whether the safety checker that a pipeline names is taken over; the cascade says if not.
    """

    variant: str = ""
    dtype: str = "bfloat16"
    overwrite: bool = False
    low_res_size: int = 0
    null_text: str = ""
    safety_checker: bool = True


@dataclasses.dataclass(frozen=True)
class ConvertedCascade:
    """What `convert` has written.

    Attributes:
        out: the folder.
        stages: their number.
        parameters: their number.
        size: in bytes.
        notes: sentences on what the pipelines do not say, and was assumed.
    """

    out: Path
    stages: int
    parameters: int
    size: int
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """Returns the result as lines of text."""
        stages = "1 stage" if self.stages == 1 else f"{self.stages} stages"
        return "\n".join([f"{self.out}: {stages}, {self.parameters:,} parameters, {self.size:,} bytes", *self.notes])


class _Encoder(NamedTuple):
    """A text encoder in the cascade, and what files of it are called in the pipeline."""

    entry: TextEncoderEntry
    names: dict[str, str]


class _SourceStage(NamedTuple):
    """A stage to write.

    Attributes:
        source: the pipeline.
        files: its weights.
        config: without the text encoder.
        width: of its text.
        null_text: the stored one [L, D], to be written beside its text encoder; None for none.
    """

    source: PipelineFolder
    files: TensorFiles
    config: StageConfig
    width: int
    null_text: np.ndarray | None


def convert(names: Sequence[str], out: str | Path, settings: ConvertSettings = ConvertSettings()) -> ConvertedCascade:
    """Writes a published cascade with the stages of pipelines in the format of diffusers.

    Args:
        names: the pipelines, see `open_pipeline`: a first stage, a first stage and one that enlarges its images, or one
            that enlarges.
        out: the folder, on a disk.
        settings: see `ConvertSettings`.

    Raises:
        ConfigError: a pipeline cannot be read or is not supported, or the folder cannot be written.
        OSError: a file cannot be written.
    """
    if is_bucket(str(out)):
        raise ConfigError(f"--out {str(out)!r} is in a bucket: give a folder on this machine, and copy it there then")
    folder = as_path(out)
    check_out(folder, settings.overwrite)
    sources = _open(names, settings)
    checked = safety_checker.choose(sources, settings.safety_checker)
    check_out(folder, settings.overwrite, [source.folder for source in sources])
    _check_low_res_size(settings.low_res_size, sources)
    stages = [_read_stage(source, sources[0], settings) for source in sources]
    with new_folder(folder) as temporary:
        encoders = _copy_encoders(temporary, stages)
        checker = safety_checker.copy(checked, sources, temporary)
        entries = []
        for index, (stage, encoder) in enumerate(zip(stages, encoders, strict=True)):
            entries.append(_write_stage(temporary / f"stage_{index}", stage, encoder, checked))
        for source in sources:
            for path in license_files(source.folder):
                copy_file(path, temporary / path.name)
        write_card(temporary, folder.name, sources, [stage.config for stage in stages], checker)
        write_index(temporary, folder.name, entries, checker)
        size = sum(file_sizes(temporary).values())
        commit_folder(temporary, folder.absolute())
    parameters = sum(int(np.prod(shape)) for stage in stages for shape in stage.files.shapes.values())
    notes = () if settings.low_res_size else _assumptions(stages[0].config)
    return ConvertedCascade(folder, len(stages), parameters, size, notes)


def _open(names: Sequence[str], settings: ConvertSettings) -> list[PipelineFolder]:
    """Returns the pipelines of some names. Raises ConfigError unless they are the stages of a cascade, in order."""
    if not 1 <= len(names) <= 2:
        raise ConfigError(f"{len(names)} pipelines are given, and one or two can be converted: the first stage first")
    sources: list[PipelineFolder] = []
    for name in names:
        # the Hub has the same text encoder with each stage, which is compared by its list of files, and checker
        needs_checker = settings.safety_checker and not any(source.safety_checker for source in sources)
        sources.append(open_pipeline(name, settings.variant, not sources, needs_checker))
    if len(sources) == 2:
        for source, enlarges in zip(sources, (False, True), strict=True):
            if source.is_super_resolution != enlarges:
                what, place = ("a first", "second") if enlarges else ("a super-resolution", "first")
                raise ConfigError(
                    f"{printable(source.name)!r} is {what} stage ({source.class_name}) in the place of the {place}: "
                    "give the first stage first, and one that enlarges its images after it"
                )
    if sources[0].text_encoder is None:
        if component(sources[0].index, "text_encoder") is None:
            raise ConfigError(
                f"{sources[0].file(INDEX)} names no text_encoder: copy it again, or the complete pipeline"
            )
        raise ConfigError(
            f"{sources[0].folder} has no text encoder, such as text_encoder/{SINGLE_FILE}: copy text_encoder and "
            "tokenizer of the pipeline there"
        )
    for source in sources[1:]:
        if source.text_encoder is None:
            check_shared_encoder(sources[0], source)
    return sources


def _check_low_res_size(size: int, sources: Sequence[PipelineFolder]) -> None:
    """Raises ConfigError if a size is given where it is known, or none can be."""
    if size and not sources[0].is_super_resolution:
        raise ConfigError(
            f"--low_res_size={size} is for a super-resolution stage that is converted alone: leave it out, the first "
            "stage has the size of its images"
        )


def _assumptions(first: StageConfig) -> tuple[str, ...]:
    """Returns a sentence on the size of the images that a cascade's first stage enlarges, if it enlarges any."""
    if not first.is_super_resolution:
        return ()
    low, high = format_height_width(first.low_res_hw), format_height_width(first.image_hw)
    return (
        f"it enlarges images of {low} to {high}, which no file of the pipeline says: a fourth, as in DeepFloyd IF, is "
        "assumed; if it was trained to enlarge others, give their size by --low_res_size",
    )


def _read_stage(source: PipelineFolder, first: PipelineFolder, settings: ConvertSettings) -> _SourceStage:
    """Returns a stage to write; its tensors are those of its network. Raises ConfigError."""
    name = source.file("unet/config.json")
    keys = unet_config.stage_keys(source.unet, name, source.is_super_resolution)
    width = unet_config.text_width(source.unet, name)
    null_text = _null_text(source if source.text_encoder is not None else first, width, settings.null_text)
    learned = keys["diffusion.variance_type"] == "learned"
    keys |= schedulers.stage_keys(source.scheduler, source.file("scheduler/scheduler_config.json"), learned)
    second = source.is_super_resolution
    keys |= {
        "diffusion.null_text": "empty" if null_text is None else "stored",
        "model.dtype": settings.dtype,
        "sampling.num_inference_steps": _STEPS[second],
        "sampling.guidance_scale": _GUIDANCE[second],
        "text.length": TEXT_LENGTH,
        "text.padding": "encoded",
        "text.cleaning": "if",
        "text.dtype": settings.dtype,
    }
    if second:
        before = settings.low_res_size or None if first is source else first.unet["sample_size"]
        keys |= {
            "low_res_size": _low_res_size(keys["image_size"], before),
            "diffusion.aug_schedule": schedulers.SCHEDULE,
            "diffusion.aug_after_resize": True,
            "diffusion.align_corners": True,
            "sampling.aug_level": (schedulers.NOISE_LEVEL + 1) / schedulers.DISCRETE_STEPS,
        }
    try:
        config = StageConfig().with_changes(keys)
    except ConfigError as error:
        raise ConfigError(*(f"{name} describes no stage: {problem}" for problem in error.problems)) from error
    files = TensorFiles(weight_files.parts(source.folder / "unet", source.weights))
    _check_tensors(source.file("unet"), files, _shapes(config, width))
    return _SourceStage(source, files, config, width, null_text)


def _null_text(source: PipelineFolder, width: int, given: str) -> np.ndarray | None:
    """Returns the null text in a file that is given, or of a pipeline that has one. Raises ConfigError."""
    own = source.folder / "text_encoder" / NULL_TEXT
    name = given or (str(own) if own.is_file() else "")
    return load_array(name, (TEXT_LENGTH, width)) if name else None


def _low_res_size(size: Any, before: Any) -> Any:
    """Returns the size of the images that a stage enlarges: `before`, if it is known, or a fourth of its own."""
    if before is not None:
        return tuple(before) if isinstance(before, list) else before
    return tuple(side // _ENLARGEMENT for side in size) if isinstance(size, tuple) else size // _ENLARGEMENT


def _shapes(config: StageConfig, width: int) -> dict[ParamPath, tuple[int, ...]]:
    """Returns the shapes of a stage's parameters."""
    abstract = jax.eval_shape(build(config, width).init, jax.random.key(0))
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(abstract).items()}


def _check_tensors(where: str, files: TensorFiles, shapes: dict[ParamPath, tuple[int, ...]]) -> None:
    """Raises ConfigError that lists missing, unexpected and misshapen tensors, and those that are not floats."""
    paths = {parameter_path(name, len(shape)): name for name, shape in files.shapes.items()}
    problems = [f"missing {'.'.join(path)}" for path in sorted(shapes.keys() - paths.keys())]
    problems += [
        f"unexpected {printable(paths[path])} in {files.files[paths[path]]}"
        for path in sorted(paths.keys() - shapes.keys())
    ]
    for path in sorted(shapes.keys() & paths.keys()):
        name, shape = paths[path], stored_shape(path, shapes[path])
        if files.shapes[name] != shape:
            problems.append(f"{name} is {list(files.shapes[name])}, expected {list(shape)}")
        elif files.dtypes[name] not in _DTYPES:
            problems.append(f"{name} is stored as {files.dtypes[name]}, expected one of {', '.join(_DTYPES)}")
    if problems:
        raise mismatch_error(where, problems)


def _copy_encoders(cascade: Path, stages: Sequence[_SourceStage]) -> list[_Encoder]:
    """Copies the text encoders of pipelines into a cascade, each once, and returns that of each stage.

    Raises:
        ConfigError: one cannot be read, or has another width than the U-Net takes.
    """
    encoders: list[_Encoder] = []
    for source, _, _, width, null_text in stages:
        if source.text_encoder is None:
            encoders.append(encoders[0])
            continue
        name = f"text_encoder_{len(encoders)}" if encoders else "text_encoder"
        _copy_encoder(source, cascade / name)
        if null_text is not None:
            write_null_text(cascade / name, null_text)
        try:
            encoder = load_encoder(str(cascade / name), TEXT_LENGTH)
            fingerprint = encoder.fingerprint()
        except ConfigError as error:
            texts = (problem.replace(str(cascade / name), source.file("text_encoder")) for problem in error.problems)
            raise ConfigError(*texts) from error
        if encoder.width != width:
            raise ConfigError(
                f"{source.file('text_encoder')} has embeddings of width {encoder.width}, and the U-Net beside it takes "
                f"{width}: copy the text encoder that came with it"
            )
        same = [encoder for encoder in encoders if encoder.entry.fingerprint == fingerprint]
        if same:
            shutil.rmtree(cascade / name)
            encoders.append(same[0])
            continue
        entry = TextEncoderEntry(model=f"{source.short_name}/text_encoder", fingerprint=fingerprint, folder=name)
        encoders.append(_Encoder(entry, origin.file_names(source.text_encoder)))
    return encoders


def _copy_encoder(source: PipelineFolder, target: Path) -> None:
    """Copies a text encoder and its tokenizer into one folder, which `text/encoder.py` reads."""
    assert source.text_encoder is not None
    folder, renamed = source.folder / "text_encoder", {v: k for k, v in origin.file_names(source.text_encoder).items()}
    names = {path.name for path in weight_files.parts(folder, source.text_encoder)}
    for name in sorted(names | {source.text_encoder.file, "config.json"}):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} has no {name}: copy it there")
        copy_file(folder / name, target / renamed.get(name, name))
    for name in TOKENIZER_FILES:
        if (source.folder / "tokenizer" / name).is_file():
            copy_file(source.folder / "tokenizer" / name, target / name)


def _write_stage(folder: Path, stage: _SourceStage, encoder: _Encoder, checked: PipelineFolder | None) -> StageEntry:
    """Writes a stage's folder, and returns its entry in the index; `checked` has the cascade's safety checker."""
    text = {"text.model": encoder.entry.model, "text.fingerprint": encoder.entry.fingerprint}
    config = to_json(stage.config.with_changes(text))
    names = None if stage.source.text_encoder is None else encoder.names
    write_json(folder / CONFIG, config)
    checker_names = safety_checker.names_in(stage.source, checked)
    write_json(folder / ORIGIN, origin.describe(stage.source, stage.files, names, checker_names).model_dump())
    _write_weights(folder, stage.files, stage.source.folder / "unet")
    return StageEntry(
        folder=folder.name,
        step=0,
        weights="ema",
        checkpoint=weights_checksum(folder),
        config=config_digest(config),
        text_encoder=encoder.entry,
    )


def _write_weights(folder: Path, files: TensorFiles, source: Path) -> None:
    """Writes tensors of a U-Net as the float32 parameters of a stage, in files of up to `MAX_SHARD_SIZE`.

    Raises ConfigError if one of the tensors, which are in the folder `source`, has values that are not finite.
    """
    paths = {parameter_path(name, len(shape)): name for name, shape in files.shapes.items()}
    specs = {SEPARATOR.join(path): _spec(path, files.shapes[name]) for path, name in paths.items()}

    def read(parameter: str) -> np.ndarray:
        path = tuple(parameter.split(SEPARATOR))
        name = paths[path]
        tensor = files.read(name, tuple(slice(0, size) for size in files.shapes[name]))
        if not np.isfinite(tensor).all():
            raise ConfigError(f"{name} in {source / files.files[name]} has values that are not finite: copy it again")
        return from_torch(path, tensor).astype(np.float32, order="C")  # one copy, already transposed

    write_shards(folder, specs, read, {"format": "flax"}, MAX_SHARD_SIZE)


def _spec(path: ParamPath, stored: tuple[int, ...]) -> TensorSpec:
    """Returns what a file of the stage has of a parameter, from the shape of the pipeline's tensor."""
    return TensorSpec("F32", from_torch(path, np.broadcast_to(np.False_, stored)).shape)
