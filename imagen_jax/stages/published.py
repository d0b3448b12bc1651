"""Published cascades, as `imagen publish` writes them: read and verified, stage by stage.

    CASCADE/model_index.json                           the stages, base first, and what identifies each
    CASCADE/SHA256SUMS                                 checksum of every file, which `sha256sum --check` can read
    CASCADE/stage_N/config.json                        the stage's config
    CASCADE/stage_N/model.safetensors                  its weights; or several files, with the index of the ecosystem:
    CASCADE/stage_N/model-00001-of-00002.safetensors, …, CASCADE/stage_N/model.safetensors.index.json
    CASCADE/stage_N/diffusers.json                     of a stage that `imagen convert` read: what it needs to go back
    CASCADE/text_encoder/                              a Hugging Face T5 folder, if the text encoder is inside
    CASCADE/safety_checker/                            that of DeepFloyd IF, see `pipelines/safety_checker.py`
    CASCADE/README.md, CASCADE/samples.png             for people; not read, and not verified

Only files that the checksums list are used, and others beside them are refused. Tensors are named after the paths of
parameters, such as `down_0_res_0.conv_0.kernel`, and have the layout of Flax.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from huggingface_hub import constants
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imagen_jax.config.load import from_json, to_json
from imagen_jax.config.schema import (
    CodecConfig,
    DiffusionConfig,
    OptimizerConfig,
    ReconstructionConfig,
    StageConfig,
    VAEConfig,
)
from imagen_jax.errors import ConfigError
from imagen_jax.io import checksums
from imagen_jax.io.atomic import read_json
from imagen_jax.io.local_copy import CACHE
from imagen_jax.io.paths import expand_user
from imagen_jax.io.tensor_files import INDEX_FILE, SINGLE_FILE, TensorFiles, pickle_files, read_weight_map
from imagen_jax.io.text import printable
from imagen_jax.parallel import multihost
from imagen_jax.parallel.sharding import Index, ParamPath, load_slices
from imagen_jax.stages import saved_arrays
from imagen_jax.stages.trainable import param_paths, select
from imagen_jax.stages.weights import text_width

INDEX = "model_index.json"
CONFIG = "config.json"
ORIGIN = "diffusers.json"
FORMAT = 1
CLASS_NAME = "ImagenPipeline"
SAFETY_CHECKER: Literal["safety_checker"] = "safety_checker"
SEPARATOR = "."  # in the names of tensors, where paths of parameters have a slash
STAGE_FOLDER = re.compile(r"stage_(0|[1-9][0-9]?)")
_SHA256 = r"^[0-9a-f]{64}$"
_WEIGHTS = re.compile(r"model(-[0-9]{5}-of-[0-9]{5})?\.safetensors")
_DTYPES = {
    **{"F64": jnp.float64, "F32": jnp.float32, "F16": jnp.float16, "BF16": jnp.bfloat16},
    **{"I64": jnp.int64, "I32": jnp.int32, "I16": jnp.int16, "I8": jnp.int8, "U8": jnp.uint8, "BOOL": jnp.bool_},
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class TextEncoderEntry(_Part):
    """The text encoder of a stage: by name and fingerprint, and its folder in the cascade if it is inside."""

    model: str = Field(min_length=1)
    fingerprint: str = Field(pattern=r"^[0-9a-f]{32}$")
    folder: str | None = Field(default=None, pattern=r"^text_encoder(_[0-9]{1,2})?$")


class SafetyCheckerEntry(_Part):
    """The safety checker of a cascade.

    Attributes:
        model: where it is from.
        checksum: identifies its weights, see `cascade_folder.weights_checksum`; "" where it was left out.
        folder: in the cascade; None where whoever made the cascade chose to leave it out.
    """

    model: str = Field(min_length=1)
    checksum: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    folder: Literal["safety_checker"] | None = None


class StageEntry(_Part):
    """A stage of a cascade.

    Attributes:
        folder: in the cascade.
        step: the training step of the weights.
        weights: "ema" or "raw".
        checkpoint: identifies the checkpoint that the weights are from, see `SavedWeights.checksum`.
        config: identifies the config that they were trained with, see `config_digest`.
        text_encoder: what the stage is conditioned on.
    """

    folder: str = Field(pattern=f"^{STAGE_FOLDER.pattern}$")
    step: int = Field(ge=0)
    weights: Literal["ema", "raw"]
    checkpoint: str = Field(pattern=_SHA256)
    config: str = Field(pattern=_SHA256)
    text_encoder: TextEncoderEntry


class CascadeIndex(_Part):
    """What `model_index.json` says."""

    class_name: Literal["ImagenPipeline"] = Field(alias="_class_name")
    software: str = Field(alias="_imagen_jax_version")
    format: int
    name: str
    stages: list[StageEntry] = Field(min_length=1, max_length=100)
    safety_checker: SafetyCheckerEntry | None = None  # for a cascade that never had one

    def to_json(self) -> dict[str, Any]:
        """Returns the content of the file; without a safety checker, that of versions which knew none."""
        return self.model_dump(by_alias=True, exclude=None if self.safety_checker else {"safety_checker"})


# keys that are younger than `config_digest`, by group, with their defaults
_LATER = {
    "vae": to_json(VAEConfig()),
    "codec": to_json(CodecConfig()),
    "reconstruction": to_json(ReconstructionConfig()),
    "diffusion": {name: getattr(DiffusionConfig(), name) for name in ("never_dropped", "low_res_vae")},
    "optimizer": {"skip_norm": OptimizerConfig().skip_norm},
}


def config_digest(config: dict[str, Any]) -> str:
    """Returns the SHA-256 of a stage's config as JSON, without its sampling settings.

    Keys of `_LATER` count where they are set: a stage that was trained before there were any keeps its digest.
    """
    settings = {}
    for name, value in config.items():
        if later := _LATER.get(name):
            value = {key: entry for key, entry in value.items() if key not in later or entry != later[key]}
            if not value:
                continue
        settings[name] = value
    settings.pop("sampling", None)
    return checksums.json_digest(settings)


def is_published(folder: Path) -> bool:
    """Returns whether a folder has an index; it may be damaged, or that of another program."""
    return (folder / INDEX).is_file()


def is_published_stage(folder: Path) -> bool:
    """Returns whether a folder is one of a published cascade, by its name and what is beside it."""
    return STAGE_FOLDER.fullmatch(folder.name) is not None and is_published(folder.parent)


def read_index(folder: Path) -> CascadeIndex:
    """Returns the index of a published cascade.

    Raises:
        ConfigError: there is none, or it is damaged, of another program or of a later format.
    """
    try:
        tree = read_json(folder / INDEX)
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} has no {INDEX}: give a folder that imagen publish has written") from error
    except (ValueError, OSError) as error:
        _verify(folder, INDEX)
        raise ConfigError(f"{folder / INDEX} is not JSON ({error}): copy it again") from error
    other = tree.get("_class_name") if isinstance(tree, dict) else None
    if other != CLASS_NAME and not (folder / checksums.MANIFEST).is_file():
        what = f"describes a {printable(other)[:80]}" if isinstance(other, str) else "does not describe a cascade"
        fix = "give a folder that imagen publish has written"
        if isinstance(other, str) and other.startswith("IF"):  # a pipeline of DeepFloyd IF
            fix = f"convert it first, imagen convert --from={folder}"
        raise ConfigError(f"{folder / INDEX} {what}: {fix}")
    _verify(folder, INDEX)
    version = tree.get("format") if isinstance(tree, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise ConfigError(
            f"{folder / INDEX} has format {version}, and this version of imagen_jax reads {FORMAT}: upgrade it, pip "
            "install --upgrade imagen_jax"
        )
    try:
        index = CascadeIndex.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = printable(".".join(map(str, first["loc"])))[:80]
        raise ConfigError(f"{folder / INDEX} does not describe a cascade ({where}: {first['msg']})") from error
    if index.format != FORMAT or len({stage.folder for stage in index.stages}) != len(index.stages):
        raise ConfigError(
            f"{folder / INDEX} does not describe a cascade (its format is not {FORMAT}, or a stage is twice)"
        )
    return index


def listed_files(folder: Path, parts: Collection[str]) -> list[str]:
    """Returns the files of some folders of a cascade, such as `stage_0`, that its checksums list.

    Raises ConfigError if the checksums are missing or damaged, or lead out of the folder.
    """
    try:
        names = checksums.listed(folder)
    except (OSError, ValueError) as error:
        raise _damaged(folder, [f"{checksums.MANIFEST} is missing or damaged ({error})"]) from error
    outside = [name for name in names if name.startswith("/") or ".." in name.split("/")]
    if outside:
        raise _damaged(folder, [f"{checksums.MANIFEST} lists {name}, which is not in the cascade" for name in outside])
    return sorted(name for name in names if name.partition("/")[0] in parts and name.count("/") == 1)


def _verify(folder: Path, name: str) -> None:
    """Checks a file of a cascade against its checksum. Raises ConfigError."""
    problems = checksums.verify(folder, lambda file: file == name)
    if not problems and name not in checksums.listed(folder):
        problems = [f"{name} is not in {checksums.MANIFEST}"]
    if problems:
        raise _damaged(folder, problems)


def _verify_part(folder: Path, part: str) -> None:
    """Checks all files of a folder of a cascade, and that there are no others; all processes call it.

    The files of a folder that processes share are split over them; copies that each machine has of its own are not.

    Raises:
        ConfigError: one is missing, unlisted or different.
    """

    def included(name: str) -> bool:
        # hidden files are those of file managers; nothing reads them
        return name.startswith(f"{part}/") and not name.startswith(f"{part}/.")

    count, index = (1, 0) if _is_own_copy(folder) else (jax.process_count(), jax.process_index())
    problems = checksums.verify(folder, included, index, count)
    gathered = multihost.all_gather_strings("\n".join(problems))
    problems = list(dict.fromkeys(problem for text in gathered for problem in text.splitlines()))
    if problems:
        raise _damaged(folder, problems)


def _is_own_copy(folder: Path) -> bool:
    """Returns whether each machine has a folder of its own under this path: in a cache, or in the package."""
    caches = constants.HF_HUB_CACHE, expand_user(CACHE), Path(__file__).parents[1]
    return any(folder.absolute().is_relative_to(Path(cache).absolute()) for cache in caches)


def _damaged(folder: Path, problems: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"the cascade in {folder} is damaged: {printable('; '.join(problems[:5]))}; copy or download it again"
    )


def _entry(folder: Path) -> StageEntry:
    """Returns the entry of a stage folder in its cascade's index. Raises ConfigError."""
    for entry in read_index(folder.parent).stages:
        if entry.folder == folder.name:
            return entry
    raise ConfigError(f"{folder.parent / INDEX} lists no {folder.name}: give one of its stages")


def published_step(folder: Path) -> int:
    """Returns the training step of a published stage. Raises ConfigError."""
    return _entry(folder).step


def read_published_config(folder: Path) -> StageConfig:
    """Returns the config of a published stage; its `text.model` is the encoder's folder if that is inside.

    Raises ConfigError if it is damaged.
    """
    entry, cascade = _entry(folder), folder.parent
    _verify(cascade, f"{folder.name}/{CONFIG}")
    try:
        config: StageConfig = from_json(read_json(folder / CONFIG))
    except ConfigError as error:
        raise ConfigError(*(f"{folder / CONFIG}: {problem}" for problem in error.problems)) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / CONFIG} cannot be read ({error}): copy it again") from error
    encoder = entry.text_encoder
    if encoder.folder is None:
        return config
    return config.with_changes({"text.model": str((cascade / encoder.folder).absolute())})


def read_origin(folder: Path) -> Any:
    """Returns the JSON value that `imagen convert` has kept of where a published stage is from; None without one.

    Raises ConfigError if it is damaged.
    """
    if f"{folder.name}/{ORIGIN}" not in listed_files(folder.parent, [folder.name]):
        return None
    _verify(folder.parent, f"{folder.name}/{ORIGIN}")
    try:
        return read_json(folder / ORIGIN)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / ORIGIN} cannot be read ({error}): convert the stage again") from error


def verify_text_encoder(folder: Path) -> None:
    """Raises ConfigError if the text encoder of a stage is inside of its cascade, and damaged."""
    encoder = _entry(folder).text_encoder
    if encoder.folder is not None:
        _verify_part(folder.parent, encoder.folder)


def safety_checker_of(folder: Path) -> SafetyCheckerEntry | None:
    """Returns the safety checker of the cascade that has a stage; None if it never had one. Raises ConfigError."""
    return read_index(folder.parent).safety_checker


def verify_safety_checker(folder: Path) -> None:
    """Raises ConfigError if the cascade that has a stage has a safety checker inside, and that is damaged."""
    entry = safety_checker_of(folder)
    if entry is not None and entry.folder is not None:
        _verify_part(folder.parent, entry.folder)


class PublishedWeights:
    """The parameters of a published stage, with the interface of `SavedWeights`. The constructor verifies all files.

    Args:
        folder: the stage's folder in its cascade.
        kind: "ema" or "raw"; None for what was published.
        step: the training step; None for that of the stage.

    Attributes:
        workdir: the stage's folder.
        step: the training step of the weights.
        kind: "ema" or "raw".
        checksum: that of the checkpoint that was published.
        published_config: that of the config it was trained with, see `config_digest`.
        shapes: all parameters, as nested dicts of `jax.ShapeDtypeStruct`.

    Raises:
        ConfigError: there are no such weights, or a file is damaged, pickled, or none of `imagen publish`.
    """

    def __init__(self, folder: Path, kind: str | None = None, step: int | None = None) -> None:
        entry = _entry(folder)
        if step not in (None, entry.step):
            raise ConfigError(f"{folder} was published with the weights of step {entry.step} alone, not {step}")
        if kind not in (None, entry.weights):
            raise ConfigError(f"{folder} was published with the {entry.weights} weights alone, not with {kind}")
        self.workdir, self.step, self.kind = folder, entry.step, entry.weights
        self.checksum, self.published_config = entry.checkpoint, entry.config
        self._files = TensorFiles(_weight_files(folder))
        _check_weight_map(folder, self._files.files)
        self.shapes = _as_tree(folder, self._files)

    @property
    def text_width(self) -> int:
        """The width D of the text embeddings that the network was trained with."""
        try:
            return text_width(self.shapes)
        except (KeyError, IndexError, TypeError) as error:
            raise ConfigError(f"the weights in {self.workdir} are not those of a stage: publish it again") from error

    def load(self, abstract: Any, partial: bool = False) -> Any:
        """Loads parameters; each process reads only the slices that its devices need.

        Args:
            abstract: their shapes, types and shardings.
            partial: whether the folder may have others.

        Raises:
            ConfigError: names, shapes or types differ from those of the folder.
        """
        stored = select(self.shapes, set(param_paths(abstract))) if partial else self.shapes
        mismatches = saved_arrays.tree_mismatches(stored, abstract, "params")
        if mismatches:
            raise saved_arrays.mismatch_error(f"the published stage {self.workdir}", mismatches)

        def read(path: ParamPath, index: Index) -> np.ndarray:
            return self._files.read(SEPARATOR.join(path), index)

        return load_slices(abstract, read)


def _weight_files(folder: Path) -> list[Path]:
    """Returns the files of a stage's weights, verified. Raises ConfigError."""
    cascade, part = folder.parent, folder.name
    names = [name.partition("/")[2] for name in listed_files(cascade, [part])]
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    weights = [name for name in names if _WEIGHTS.fullmatch(name)]
    pickled = pickle_files({*names, *present})
    if pickled and not weights:
        raise ConfigError(
            f"{folder} has pickled weights ({printable(', '.join(pickled))}), and unpickling can run code: give a "
            "folder that imagen publish has written, with safetensors"
        )
    foreign = sorted(set(names) - set(weights) - {CONFIG, INDEX_FILE, ORIGIN})
    if foreign:
        raise _damaged(cascade, [f"{checksums.MANIFEST} lists {part}/{name}, which no stage has" for name in foreign])
    _verify_part(cascade, part)
    if not weights:
        raise ConfigError(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}: copy the cascade again")
    return [folder / name for name in weights]


def _check_weight_map(folder: Path, files: dict[str, str]) -> None:
    """Raises ConfigError unless the weights are in one file, or the index says where each tensor is."""
    names = set(files.values())
    if names != {SINGLE_FILE} and not (folder / INDEX_FILE).is_file():
        raise ConfigError(f"{folder} has several files of weights and no {INDEX_FILE}: copy the cascade again")
    if (folder / INDEX_FILE).is_file() and read_weight_map(folder / INDEX_FILE) != files:
        raise ConfigError(f"{folder / INDEX_FILE} is not that of the files beside it: publish the stage again")


def _as_tree(folder: Path, files: TensorFiles) -> dict[str, Any]:
    """Returns the tensors as nested dicts of abstract arrays. Raises ConfigError for a type that no stage has."""
    unknown = sorted({dtype for dtype in files.dtypes.values() if dtype not in _DTYPES})
    if unknown:
        raise ConfigError(f"{folder} has tensors of type {', '.join(unknown)}, and stages have {', '.join(_DTYPES)}")
    flat = {name: jax.ShapeDtypeStruct(files.shapes[name], _DTYPES[files.dtypes[name]]) for name in files.shapes}
    try:
        return traverse_util.unflatten_dict(flat, sep=SEPARATOR)
    except (TypeError, AttributeError, ValueError) as error:
        raise ConfigError(f"{folder} has tensors whose names are not those of a stage's parameters") from error
