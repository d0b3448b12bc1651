"""What made an image, written into its PNG file: enough to sample it again, to the bit.

A file has two texts. `imagen_jax` is JSON: prompt, negative prompt, seed, index, guidance scales and size of the
request, the step, checkpoint, config and sampling settings of each stage, the adapters of all, and the batch it was
sampled in. `parameters` has the main ones in the form that viewers of generated images show. Neither names a path or a
machine.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import jax
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from imagen_jax.diffusion.keys import MAX_INDEX, MAX_SEED
from imagen_jax.errors import ConfigError
from imagen_jax.images import png
from imagen_jax.io.changes import changes, flatten
from imagen_jax.io.paths import as_path, bucket_path
from imagen_jax.io.text import printable
from imagen_jax.io.version import VERSION
from imagen_jax.parallel import devices
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.loading import TrainedStage
from imagen_jax.pipelines.output_dir import stages_manifest
from imagen_jax.pipelines.request import SampleRequest
from imagen_jax.pipelines.texts import Texts
from imagen_jax.stages.stage_folder import has_step

KEYWORD = "imagen_jax"
SUMMARY_KEYWORD = "parameters"  # the habit of other tools: prompt, negative prompt, then a line of settings
_FORMAT = 1
_MAX_BATCH = 2**16
_HASH_LETTERS = 10  # of the models' hash in the summary
_VERSION = f"imagen_jax {VERSION}"

logger = logging.getLogger(__name__)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


class StageRecord(_Part):
    """A stage that an image was sampled from, as in `output_dir.stages_manifest`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")
    step: int
    weights: str = "ema"
    sampling: dict[str, Any]


class BatchRecord(_Part):
    """The batch that an image was sampled in: how many images it was padded to, and the image's position in it."""

    size: int = Field(ge=1, le=_MAX_BATCH)
    row: int = Field(ge=0)


class EditRecord(_Part):
    """How an image was made from another one, see `ImagenEditor`: which is known by the SHA-256 of its file."""

    kind: str = Field(max_length=100)
    image: str | None = Field(default=None, max_length=100)
    mask: str | None = Field(default=None, max_length=100)
    strength: list[float] = Field(default_factory=list, max_length=100)
    resample: int = 1
    feather: int | None = None
    position: list[int] | None = None
    source_prompt: str | None = None
    ends: list[int] | list[str] | None = None


class AdapterRecord(_Part):
    """An adapter that the stages had, which are known with it by their checkpoints."""

    name: str = Field(max_length=1000)
    scale: float


class ImageRecord(_Part):
    """What made an image.

    Attributes:
        format: version of this record.
        prompt: its prompt.
        negative_prompt: in the place of the null text; None for that.
        seed: of the noise.
        index: of the sample.
        guidance: a scale for each stage, in place of that of its settings; None for those.
        size: (height, width) asked for; None for the config's.
        stages: the stages, base first.
        batch: the batch it was sampled in.
        devices: the devices that sampled it, and how they shared the work.
        software: versions of this package and of JAX.
        edit: how it was made from another image; None for an image from a prompt alone.
        flagged: whether the safety checker has made it black.
        adapters: of the stages, in the order in which they were loaded.
    """

    format: int = Field(ge=_FORMAT, le=_FORMAT)
    prompt: str
    negative_prompt: str | None = None
    seed: int = Field(ge=0, le=MAX_SEED)
    index: int = Field(ge=0, le=MAX_INDEX)
    guidance: list[float] | None = None
    size: list[int] | None = Field(default=None, min_length=2, max_length=2)
    stages: list[StageRecord] = Field(min_length=1, max_length=100)
    batch: BatchRecord
    devices: str = ""
    software: str = ""
    edit: EditRecord | None = None
    flagged: bool = False
    adapters: list[AdapterRecord] = Field(default_factory=list, max_length=100)

    @model_validator(mode="after")
    def _check(self) -> ImageRecord:
        if self.batch.row >= self.batch.size:
            raise ValueError("batch.row is outside the batch")
        if self.guidance is not None and len(self.guidance) != len(self.stages):
            raise ValueError("guidance has another number of scales than there are stages")
        return self

    def sampling(self) -> list[dict[str, Any]]:
        """Returns the sampling settings of each stage, without the name of a draft, of which there is none.

        Raises:
            ConfigError: the image was drawn from a draft: which files are read is not for an image to say.
        """
        drafts = [stage.sampling["draft"] for stage in self.stages if stage.sampling.get("draft")]
        if drafts:
            raise ConfigError(
                f"the image was drawn from a draft of the VAE {printable(str(drafts[0]))!r}, which is not loaded by an "
                "image's record: sample the prompt and seed with --draft, the VAE's folder"
            )
        return [
            {key: _from_json(value) for key, value in stage.sampling.items() if key != "draft"} for stage in self.stages
        ]

    def weights(self, folders: Sequence[str | os.PathLike[str]]) -> list[dict[str, Any]]:
        """Returns which weights of each stage folder to load: those of the image, or the newest if they are gone."""
        return [
            {"step": stage.step if has_step(as_path(folder), stage.step) else None, "kind": stage.weights}
            for stage, folder in zip(self.stages, folders, strict=True)
        ]


class Recorder:
    """Makes the texts of the images of a request.

    Args:
        pipeline: the cascade.
        request: what is sampled from it.
        stages: from `stages_manifest`.
    """

    def __init__(self, pipeline: ImagenPipeline, request: SampleRequest, stages: Mapping[str, Any]) -> None:
        self._request, self._stages = request, [stages[key] for key in sorted(stages, key=int)]
        # an isolated image is the same in the smallest batch
        count = 1 if request.isolated else len(request.texts.prompts)
        self._batch_size = pipeline.padded_batch(count, request.batch_size)
        self._devices = _describe_devices(pipeline)
        # without the folders that names of files begin with
        self._adapters = [{"name": as_path(name).name, "scale": scale} for name, scale in pipeline.lora_scales.items()]

    def texts(
        self,
        first: int,
        row: int,
        shape: Sequence[int],
        edit: Mapping[str, Any] | None = None,
        flagged: bool = False,
    ) -> dict[str, str]:
        """Returns the texts of an image, by keyword; none for given embeddings, and for a prompt too long for a file.

        Args:
            first: position of the batch's first image in the request.
            row: position of the image in its batch.
            shape: of the image, (H, W, C).
            edit: how it was made from another one, with the fields of `EditRecord`.
            flagged: whether the safety checker has made it black.
        """
        request, position = self._request, first + row
        if edit is None and (request.texts.embeds is not None or request.texts.negative_embeds is not None):
            return {}
        negative, scales = request.texts.negative_prompts, request.guidance_scale
        seed, index = request.noise(position)
        record = {
            "format": _FORMAT,
            "prompt": request.texts.prompts[position],
            "negative_prompt": None if negative is None else negative[position],
            "seed": int(seed),
            "index": index,
            "guidance": None if scales is None else [float(scale) for scale in scales[:, position]],
            "size": None if request.size is None else list(request.size),
            "stages": [
                {**stage, "sampling": {key: _to_json(value) for key, value in stage["sampling"].items()}}
                for stage in self._stages
            ],
            "batch": {"size": self._batch_size, "row": 0 if request.isolated else row},
            "devices": self._devices,
            "software": f"{_VERSION}, jax {jax.__version__}",
        }
        if edit is not None:
            record["edit"] = dict(edit)
        if flagged:
            record["flagged"] = True
        if self._adapters:
            record["adapters"] = self._adapters
        texts = {SUMMARY_KEYWORD: _summary(record, shape), KEYWORD: _dumps(record)}
        if any(len(text.encode()) > png.MAX_TEXT_BYTES for text in texts.values()):
            logger.warning("image %d: its prompt is too long to be written into the file", record["index"])
            return {}
        return texts


def _summary(record: Mapping[str, Any], shape: Sequence[int]) -> str:
    """Returns prompt, negative prompt and the main settings of the base stage, as other tools write them."""
    sampling = record["stages"][0]["sampling"]
    scale = sampling["guidance_scale"] if record["guidance"] is None else record["guidance"][0]
    checkpoints = json.dumps([stage["checkpoint"] for stage in record["stages"]])
    settings = {
        "Steps": sampling["num_inference_steps"],
        "Sampler": sampling["sampler"],
        "CFG scale": f"{scale:g}",
        "Seed": record["seed"],
        "Size": f"{shape[1]}x{shape[0]}",
        "Model hash": hashlib.sha256(checkpoints.encode()).hexdigest()[:_HASH_LETTERS],
        "Index": record["index"],
        "Version": _VERSION,
    }
    if record.get("adapters"):
        names = [f"{printable(adapter['name'])} {adapter['scale']:g}" for adapter in record["adapters"]]
        settings["Adapters"] = " + ".join(names)
    lines = [printable(record["prompt"])]
    if record["negative_prompt"] is not None:
        lines.append(f"Negative prompt: {printable(record['negative_prompt'])}")
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in settings.items())])


def _dumps(record: Mapping[str, Any]) -> str:
    """Returns a record as JSON of readable Unicode; of ASCII where it has lone surrogates, which UTF-8 cannot hold."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(record, allow_nan=False)
    return text


def _to_json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(value: Any) -> Any:
    return math.inf if value == "inf" else value


def _describe_devices(pipeline: ImagenPipeline) -> str:
    """Returns number and kind of the devices and the mesh, such as "8 × cpu in 1 process(es), data=8"."""
    mesh = pipeline.mesh
    axes = [f"{name}={size}" for name, size in mesh.shape.items() if size > 1]
    return ", ".join([devices.describe_devices(mesh.devices.flat), *axes])


def read_record(name: str | os.PathLike[str]) -> ImageRecord:
    """Returns what made the image of a PNG file.

    Raises:
        ConfigError: the file cannot be read, is not a PNG of `imagen sample`, or its text is damaged.
    """
    path, what = as_path(name), f"image {printable(str(name))!r}"
    try:
        if bucket_path(path) is not None:
            return _parse(io.BytesIO(path.read_bytes()), what)
        with path.open("rb") as file:
            return _parse(file, what)
    except OSError as error:
        raise ConfigError(f"{what} cannot be read ({error.strerror or error})") from error


def parse_record(data: bytes, what: str) -> ImageRecord:
    """Returns what made an image; its pixels are not decoded, and memory is bounded for any input.

    Args:
        data: of a PNG file.
        what: the image, for messages.

    Raises:
        ConfigError: it is not a PNG of `imagen sample`, or its text is damaged.
    """
    return _parse(io.BytesIO(data), what)


def _parse(file: BinaryIO, what: str) -> ImageRecord:
    """Returns what made the image of an open file. Raises ConfigError and OSError."""
    try:
        text = png.read_text(file, KEYWORD)
        tree = None if text is None else json.loads(text)
    except RecursionError as error:
        raise ConfigError(f"{what} cannot be used: its text {KEYWORD!r} is nested too deeply") from error
    except ValueError as error:
        raise ConfigError(f"{what} cannot be used: {printable(str(error))}: give a PNG of imagen sample") from error
    if tree is None:
        raise ConfigError(
            f"{what} does not say what made it (it has no text {KEYWORD!r}): give a PNG of imagen sample, of version "
            "0.2.0 or later, that no other program has written anew"
        )
    if isinstance(tree, dict) and isinstance(tree.get("format"), int) and tree["format"] > _FORMAT:
        raise ConfigError(f"{what} was written by a later version of imagen_jax: update, to read it")
    try:
        return ImageRecord.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{what} cannot be used: its text {KEYWORD!r} is not one of imagen sample "
            f"({printable(where)[:80]}: {first['msg']})"
        ) from error


def check_stage_count(record: ImageRecord, count: int, name: str) -> None:
    """Raises ConfigError unless an image was sampled from `count` stages; `name` is the image's, for the message."""
    if len(record.stages) != count:
        raise ConfigError(f"{name} was sampled from {len(record.stages)} stages, and --stages has {count}: give those")


def check_same_model(record: ImageRecord, stages: Sequence[TrainedStage], name: str) -> None:
    """Raises ConfigError unless an image was sampled from these stages with these weights.

    Args:
        record: of the image.
        stages: of the cascade.
        name: of the image, for the message.
    """
    manifests = json.loads(json.dumps(stages_manifest(stages)))
    now = flatten({key: _model(manifest) for key, manifest in manifests.items()}, "stages.")
    before = flatten({str(i): _model(stage.model_dump()) for i, stage in enumerate(record.stages)}, "stages.")
    changed = list(changes(before, now).values())
    if changed:
        raise ConfigError(
            f"{name} was sampled from another model: {printable(changed[0])}: give the stages that it was sampled "
            "from, or --other_model to sample from these with its settings"
        )


def _model(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {"weights": "ema"} | {key: value for key, value in manifest.items() if key not in ("sampling", "draft")}


def like_request(record: ImageRecord, alone: int | None = None) -> SampleRequest:
    """Returns the request that samples an image again: at its position in a batch of the same size.

    Args:
        record: of the image.
        alone: a batch size to use instead; the image is then equal up to rounding.

    Raises:
        ConfigError: it was made from another image, which its file does not have.
    """
    if record.edit is not None:
        raise ConfigError(
            f"the image was made from another one ({printable(record.edit.kind)}), which its file does not have: edit "
            "that one again, by ImagenEditor or imagen serve"
        )
    batch = record.batch if alone is None else BatchRecord(size=alone, row=0)
    negative = None if record.negative_prompt is None else [record.negative_prompt] * batch.size
    prompts = [""] * batch.size
    prompts[batch.row] = record.prompt
    guidance = None
    if record.guidance is not None:
        guidance = np.repeat(np.array(record.guidance, np.float32)[:, None], batch.size, axis=1)
    size = None if record.size is None else (record.size[0], record.size[1])
    seed: int | list[int] = record.seed
    first = record.index - batch.row
    if first < 0:  # the images of its batch had seeds of their own
        seed, first = [record.seed] * batch.size, record.index
    return SampleRequest(Texts(prompts, negative), seed, batch.size, guidance, size, first, batch.row)


def warn_if_elsewhere(record: ImageRecord, pipeline: ImagenPipeline) -> None:
    """Logs where an image may differ by rounding, because other devices or another version of JAX sample it."""
    now = _describe_devices(pipeline), f"{_VERSION}, jax {jax.__version__}"
    for before, here in zip((record.devices, record.software), now, strict=True):
        if before != here:
            logger.warning(
                "the image was sampled with %s, now with %s: it may differ by rounding", printable(before)[:200], here
            )
