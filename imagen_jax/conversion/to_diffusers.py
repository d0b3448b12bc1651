"""Writes stages with DeepFloyd IF's network as pipelines in the format of diffusers, one folder for each.

    OUT/stage_0/, OUT/stage_1/    what `diffusers.IFPipeline` and `IFSuperResolutionPipeline.from_pretrained` load

A stage that `imagen convert` read keeps its pipeline's configs, and the names and types of its tensors, so that it
comes back as it was, to the bit. Stages that were trained since have their EMA weights in float32.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from imagen_jax.config.schema import StageConfig
from imagen_jax.conversion import origin, schedulers, unet_config, weight_files
from imagen_jax.conversion.card import write_pipeline_card
from imagen_jax.conversion.origin import Origin, TensorFile
from imagen_jax.conversion.pipeline_folder import CLASSES, SCHEDULER_FILE
from imagen_jax.conversion.safety_checker import FEATURE_EXTRACTOR
from imagen_jax.errors import ConfigError
from imagen_jax.images.clip_inputs import FILE as INPUTS_FILE
from imagen_jax.io.atomic import atomic_write, commit_folder, json_bytes, read_json
from imagen_jax.io.bucket import is_bucket
from imagen_jax.io.local_copy import copy_file
from imagen_jax.io.paths import as_path, file_sizes
from imagen_jax.io.tensor_files import FLOATS, INDEX_FILE, SINGLE_FILE, TensorSpec, write_tensors
from imagen_jax.io.text import printable
from imagen_jax.io.torch_layout import stored_shape, to_torch
from imagen_jax.models.if_names import tensor_name
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.parallel.sharding import ParamPath, with_shardings
from imagen_jax.pipelines.find_stages import find_stages
from imagen_jax.pipelines.origin import find_converted
from imagen_jax.pipelines.safety_checker import checker_files
from imagen_jax.stages.base import Weights
from imagen_jax.stages.cascade_folder import check_new, new_folder
from imagen_jax.stages.published import (
    INDEX,
    ORIGIN,
    SAFETY_CHECKER,
    STAGE_FOLDER,
    is_published_stage,
    safety_checker_of,
)
from imagen_jax.stages.stage import build
from imagen_jax.stages.stage_folder import open_weights, read_config
from imagen_jax.stages.trainable import select
from imagen_jax.stages.weights import WeightsChoice
from imagen_jax.text.encoder import encoder_folder
from imagen_jax.text.hub import encoder_files
from imagen_jax.text.null_text import FILE as NULL_TEXT
from imagen_jax.text.tokenizer import FILES as TOKENIZER_FILES

_NETWORK = "if_unet"
_GROUP_BYTES = 2**26  # of parameters that are loaded together: each load of a checkpoint takes some time
_VARIANTS = {"": "F32", weight_files.NO_VARIANT: "F32", "fp16": "F16", "bf16": "BF16"}


@dataclasses.dataclass(frozen=True)
class WrittenPipelines:
    """What `to_diffusers` has written: the folders, and their size in bytes."""

    folders: list[Path]
    size: int

    def summary(self) -> str:
        """Returns the result as a line of text."""
        names = ", ".join(map(str, self.folders))
        return f"{names}: {self.size:,} bytes, for diffusers' IFPipeline and IFSuperResolutionPipeline"


@dataclasses.dataclass(frozen=True)
class _Stage:
    """A stage to write.

    Attributes:
        config: of the stage.
        weights: of its folder.
        origin: what is kept of the pipeline it comes from; None if that is not known.
        is_unchanged: whether it has the weights of that pipeline.
        checker: the folder of its cascade's safety checker; None without one.
    """

    config: StageConfig
    weights: Weights
    origin: Origin | None
    is_unchanged: bool
    checker: Path | None


def to_diffusers(
    stages: str | Path | Sequence[str | Path],
    out: str | Path,
    variant: str = "",
    overwrite: bool = False,
    weights: Sequence[WeightsChoice] | None = None,
) -> WrittenPipelines:
    """Writes a pipeline in the format of diffusers for each stage.

    Args:
        stages: what they are, see `find_stages`.
        out: the folder, on a disk.
        variant: "fp16" or "bf16" to write such weights; "" for those of the pipeline that a stage was converted from,
            or float32.
        overwrite: whether pipelines that this function has written there are replaced.
        weights: which ones of each stage; None for their EMA.

    Raises:
        ConfigError: there is no such stage, it has another network, or the folder cannot be written.
        TrainingError: every checkpoint of a stage is damaged.
        OSError: a file cannot be written.
    """
    if variant not in _VARIANTS:
        names = ", ".join(name for name in _VARIANTS if name)
        raise ConfigError(f"--variant {printable(variant)!r} cannot be written: give one of {names}")
    if is_bucket(str(out)):
        raise ConfigError(f"--out {str(out)!r} is in a bucket: give a folder on this machine, and copy it there then")
    folder = as_path(out)
    found = find_stages(stages, safety_checker=True)
    _check_out(folder, overwrite, found)
    choices = weights or [WeightsChoice()] * len(found)
    opened = [_open(stage, choice) for stage, choice in zip(found, choices, strict=True)]
    with new_folder(folder) as temporary:
        for index, stage in enumerate(opened):
            _write_pipeline(temporary / f"stage_{index}", stage, variant)
        size = sum(file_sizes(temporary).values())
        commit_folder(temporary, folder.absolute())
    return WrittenPipelines([folder / f"stage_{index}" for index in range(len(opened))], size)


def _check_out(folder: Path, overwrite: bool, sources: Sequence[Path]) -> None:
    """Raises ConfigError if pipelines cannot be written to a folder."""
    if not check_new(folder, sources):
        return
    what = f"--out {str(folder)!r}"
    if not all(_is_written(path) for path in folder.iterdir()):
        raise ConfigError(f"{what} has files that imagen convert has not written: give a new folder")
    if not overwrite:
        raise ConfigError(f"{what} has pipelines already: give a new folder, or --overwrite to replace them")


def _is_written(folder: Path) -> bool:
    """Returns whether a folder is one that `to_diffusers` writes into OUT."""
    try:
        return bool(STAGE_FOLDER.fullmatch(folder.name)) and read_json(folder / INDEX)["_class_name"] in CLASSES
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _open(folder: Path, choice: WeightsChoice) -> _Stage:
    """Returns a stage. Raises ConfigError if its network is not that of DeepFloyd IF."""
    config = read_config(folder)
    if config.model.network != _NETWORK:
        raise ConfigError(
            f"the stage in {folder} has the network {config.model.network!r}, and diffusers has pipelines for "
            f"{_NETWORK!r} alone, that of DeepFloyd IF: give a stage that imagen convert read, or one trained from it"
        )
    if config.inpainting.enabled:
        raise ConfigError(
            f"the stage in {folder} is trained to inpaint, and diffusers' U-Net has no place for what it sees of the "
            "image: give a stage with inpainting.enabled = False"
        )
    found, weights = find_converted(folder, config), open_weights(folder, choice)
    kept = None if found is None else origin.validate(found[1], str(folder / ORIGIN))
    # training counts steps from the weights that it starts from
    is_unchanged = kept is not None and is_published_stage(folder) and weights.step == 0
    # one that was published after it was trained is in a cascade of its own
    home = folder if is_published_stage(folder) or found is None else found[0]
    return _Stage(config, weights, kept, is_unchanged, _checker(home, kept))


def _checker(folder: Path, kept: Origin | None) -> Path | None:
    """Returns the folder of the safety checker of a stage's cascade; None if the stage's pipeline has none."""
    if not is_published_stage(folder) or (kept is not None and kept.safety_checker is None):
        return None
    entry = safety_checker_of(folder)
    return None if entry is None or entry.folder is None else folder.parent / entry.folder


def _write_pipeline(folder: Path, stage: _Stage, variant: str) -> None:
    """Writes the folder of a pipeline."""
    kept = stage.origin
    encoder = _copy_encoder(folder, stage, variant)
    texts = dict(kept.texts) if kept is not None else {}
    fields = {
        INDEX: _index(stage, encoder),
        "unet/config.json": _unet(stage, texts.get("unet/config.json")),
        f"scheduler/{SCHEDULER_FILE}": _scheduler(stage, texts.get(f"scheduler/{SCHEDULER_FILE}")),
    }
    noising = f"image_noising_scheduler/{SCHEDULER_FILE}"
    if stage.config.is_super_resolution and noising not in texts:
        fields[noising] = schedulers.noising_fields()
    for name, value in fields.items():
        texts[name] = _verbatim(texts.get(name), value)
    files, index = _unet_files(stage, variant)
    if index is None:  # that of the pipeline lists other files
        texts = {name: text for name, text in texts.items() if not name.startswith("unet/") or name in fields}
    for name, text in texts.items():
        atomic_write(folder / name, text.encode())
    _write_weights(folder / "unet", stage, files)
    _copy_checker(folder, stage, variant)
    license = {} if kept is None else kept.license
    write_pipeline_card(folder, license, "" if kept is None else kept.name, not stage.is_unchanged)


def _verbatim(text: str | None, value: Any) -> str:
    """Returns the text of a JSON file: that of the pipeline if it has the same value, to the byte."""
    if text is not None and json.loads(text) == value:
        return text
    return json_bytes(value).decode()


def _index(stage: _Stage, encoder: Mapping[str, str]) -> dict[str, Any]:
    """Returns the content of model_index.json."""
    if stage.origin is not None:
        return origin.kept_components(json.loads(stage.origin.texts[INDEX]), stage.checker is not None)
    second = stage.config.is_super_resolution
    is_checked = stage.checker is not None
    components: dict[str, list[str | None]] = {
        FEATURE_EXTRACTOR: ["transformers", "CLIPImageProcessor"] if is_checked else [None, None],
        SAFETY_CHECKER: ["deepfloyd_if", "IFSafetyChecker"] if is_checked else [None, None],
        "scheduler": ["diffusers", schedulers.CLASS],
        "text_encoder": ["transformers", encoder["text_encoder"]],
        "tokenizer": ["transformers", encoder["tokenizer"]],
        "unet": ["diffusers", unet_config.CLASS],
        "watermarker": [None, None],
    }
    if second:
        components["image_noising_scheduler"] = ["diffusers", schedulers.CLASS]
    return {
        "_class_name": "IFSuperResolutionPipeline" if second else "IFPipeline",
        "_diffusers_version": unet_config.VERSION,
        "requires_safety_checker": is_checked,
        **dict(sorted(components.items())),
    }


def _unet(stage: _Stage, text: str | None) -> dict[str, Any]:
    """Returns the content of unet/config.json: that of the pipeline, with what the stage's config says otherwise."""
    fields = unet_config.unet_fields(stage.config, stage.weights.text_width)
    if text is None:
        return fields
    before, second = json.loads(text), stage.config.is_super_resolution
    old, new = (unet_config.stage_keys(one, "unet/config.json", second) for one in (before, fields))
    return before if old == new else {**before, **fields}


def _scheduler(stage: _Stage, text: str | None) -> dict[str, Any]:
    return schedulers.scheduler_fields(stage.config, None if text is None else json.loads(text))


def _unet_files(stage: _Stage, variant: str) -> tuple[dict[str, TensorFile], str | None]:
    """Returns which tensors, of which types, each file of the weights has, and the name of the index, if there is one.

    The index is that of the pipeline, and counts where the files are those of the pipeline.
    """
    if stage.is_unchanged and stage.origin is not None and not variant:
        names = [name for name in stage.origin.texts if name.startswith("unet/") and ".index." in name]
        return stage.origin.unet, names[0] if names else ""
    dtype = _VARIANTS[variant]
    label = _label(variant)
    file = f"{weight_files.UNET}.{label}.safetensors" if label else f"{weight_files.UNET}.safetensors"
    paths = traverse_util.flatten_dict(stage.weights.shapes)
    tensors = {tensor_name(path): dtype for path in paths}
    return {file: TensorFile.model_validate({"metadata": {"format": "pt"}, "tensors": tensors})}, None


def _write_weights(folder: Path, stage: _Stage, files: Mapping[str, TensorFile]) -> None:
    """Writes the U-Net's weights."""
    reader = _ParameterReader(stage)
    needed, listed = reader.specs.keys(), {name for file in files.values() for name in file.tensors}
    if needed != listed:
        names = ", ".join(sorted(needed ^ listed)[:3])
        raise ConfigError(f"the stage in {stage.weights.workdir} and its diffusers.json have other tensors: {names}")
    for name, file in files.items():
        specs = {tensor: TensorSpec(dtype, reader.specs[tensor]) for tensor, dtype in file.tensors.items()}

        def read(tensor: str, specs: Mapping[str, TensorSpec] = specs) -> np.ndarray:
            return reader.read(tensor).astype(FLOATS[specs[tensor].dtype], order="C")

        write_tensors(folder / name, specs, read, file.metadata)


class _ParameterReader:
    """Reads parameters of a stage as tensors, some at a time, in the order in which they are asked for.

    Attributes:
        specs: the shapes of the tensors, by name.

    Raises:
        ConfigError: the weights are not those of the network in the stage's config.
    """

    def __init__(self, stage: _Stage) -> None:
        self._weights = stage.weights
        network = jax.eval_shape(build(stage.config, stage.weights.text_width).init, jax.random.key(0))
        self._abstract = with_shardings(network, make_mesh({"data": 1, "fsdp": 1}, jax.local_devices()[:1]))
        self._leaves = traverse_util.flatten_dict(self._abstract)
        self._paths = {tensor_name(path): path for path in self._leaves}
        self.specs = {name: stored_shape(path, self._leaves[path].shape) for name, path in self._paths.items()}
        self._names = sorted(self._paths)
        self._loaded: dict[ParamPath, np.ndarray] = {}

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor, float32, a view of what is loaded."""
        path = self._paths[name]
        if path not in self._loaded:
            self._load_from(self._names.index(name))
        return to_torch(path, self._loaded.pop(path))

    def _load_from(self, start: int) -> None:
        """Loads the parameter at a position, and those after it that fit into one group."""
        paths: list[ParamPath] = []
        size = 0
        for name in self._names[start:]:
            path = self._paths[name]
            size += self._leaves[path].size * 4
            if paths and size > _GROUP_BYTES:
                break
            paths.append(path)
        part = select(self._abstract, {"/".join(path) for path in paths})
        loaded = traverse_util.flatten_dict(self._weights.load(part, partial=True))
        self._loaded = {path: np.asarray(array) for path, array in loaded.items()}


def _copy_encoder(folder: Path, stage: _Stage, variant: str) -> dict[str, str]:
    """Copies a stage's text encoder and tokenizer into the folder of a pipeline, and returns their classes.

    Its weights stay as they are; their names have the variant of the U-Net's, as diffusers loads both by one variant.
    Nothing is copied for a pipeline that had none. Raises ConfigError if the files are not on this machine.
    """
    kept = stage.origin
    if kept is not None and kept.text_encoder is None:
        return {}
    source = encoder_folder(stage.config.text.model)
    if source is None:
        raise ConfigError(f"text encoder {stage.config.text.model!r} has no files: give a stage with one of them")
    if stage.is_unchanged and kept is not None and not variant:
        names = kept.text_encoder or {}
    else:
        names = _encoder_names(_label(variant))
    for name in encoder_files(source):
        if name == NULL_TEXT and stage.config.diffusion.null_text != "stored":
            continue
        is_tokenizer = name in TOKENIZER_FILES
        target = f"tokenizer/{name}" if is_tokenizer else f"text_encoder/{names.get(name, name)}"
        copy_file(source / name, folder / target)
    config, tokenizer = (_json_or_empty(source / name) for name in ("config.json", "tokenizer_config.json"))
    classes = config.get("architectures") or ["T5EncoderModel"]
    return {"text_encoder": str(classes[0]), "tokenizer": str(tokenizer.get("tokenizer_class", "T5Tokenizer"))}


def _copy_checker(folder: Path, stage: _Stage, variant: str) -> None:
    """Copies a stage's safety checker, if it has one, into the folder of a pipeline; as `_copy_encoder`."""
    if stage.checker is None:
        return
    kept = stage.origin
    if stage.is_unchanged and kept is not None and not variant:
        names = kept.safety_checker or {}
    else:
        names = _encoder_names(_label(variant))
    for path in checker_files(stage.checker):
        if path.name != INPUTS_FILE:
            copy_file(path, folder / SAFETY_CHECKER / names.get(path.name, path.name))
        elif kept is None:  # else it is among the texts
            copy_file(path, folder / FEATURE_EXTRACTOR / path.name)


def _label(variant: str) -> str:
    """Returns a variant as file names have it; "" for none."""
    return "" if variant == weight_files.NO_VARIANT else variant


def _encoder_names(label: str) -> dict[str, str]:
    """Returns the names of a text encoder's files of a variant, by those that `text/` reads."""
    if not label:
        return {}
    return {SINGLE_FILE: f"model.{label}.safetensors", INDEX_FILE: f"model.safetensors.index.{label}.json"}


def _json_or_empty(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
