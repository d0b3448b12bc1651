"""How a job is sampled: by which settings of the cascade, at what cost, and what can share a batch with it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from imagen_jax.config.schema import SamplingConfig
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size
from imagen_jax.images.grid import decode_png
from imagen_jax.pipelines.edit_call import PreparedEdit
from imagen_jax.pipelines.editor import ImagenEditor
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.request import SampleRequest, StageStart
from imagen_jax.pipelines.texts import Texts
from imagen_jax.serving.jobs import EditInputs, JobRequest, LoraChoice
from imagen_jax.stages.sampling import is_guided
from imagen_jax.stages.stage_sampler import strength_steps

STEPS_PER_CALL = 2  # after which a batch can be ended, and tells where it is
_ARRAYS = ("image", "mask", "z", "before", "pairs", "positions")  # what stages may start with


@dataclasses.dataclass(frozen=True)
class EditProgram:
    """What the edits of a batch have in common; images and masks are their own.

    Attributes:
        strengths: of each stage, which decide the times of its steps.
        resample: how often each step is taken.
        inputs: names of what the stages are given in place of noise and prompts, such as "image" and "mask".
        first_stage: index of the stage to begin with.
        walks: see `PreparedEdit`.
    """

    strengths: tuple[float, ...]
    resample: int
    inputs: tuple[str, ...]
    first_stage: int
    walks: int


@dataclasses.dataclass(frozen=True)
class Program:
    """What the images of a batch have in common; prompts, seeds and guidance scales are their own.

    Attributes:
        settings: of each stage, with the guidance scale left out.
        guided: whether each stage has guidance.
        negative: whether there are negative prompts.
        size: (height, width) of the last stage's images.
        edit: of images that are made from others; None for images from prompts alone.
        lora: adapters besides those of the cascade, with their scales.
    """

    settings: tuple[SamplingConfig, ...]
    guided: tuple[bool, ...]
    negative: bool
    size: Size
    edit: EditProgram | None = None
    lora: tuple[LoraChoice, ...] = ()


@dataclasses.dataclass(frozen=True)
class JobPlan:
    """How the images of a job are sampled.

    Attributes:
        request: of the job.
        pipeline: the cascade with the job's settings; without the adapters of the program.
        program: that of its images.
        scales: guidance scale of each stage.
        stage_costs: steps × evaluations × pixels of an image in each stage.
        edit: what the job edits; None for nothing, and while the job waits: pixels are read for each batch.
    """

    request: JobRequest
    pipeline: ImagenPipeline
    program: Program
    scales: tuple[float, ...]
    stage_costs: tuple[float, ...]
    edit: PreparedEdit | None = None

    def finish(self, image: np.ndarray) -> np.ndarray:
        """Returns a sample [H, W, C] of the last stage as the job's image."""
        return image if self.edit is None else self.edit.finish(image[None])[0]

    def texts(self, index: int) -> list[tuple[str, str]]:
        """Returns the prompt and the negative prompt of each walk of an image."""
        prompt, negative = self.request.prompt(index), self.request.negative_prompt
        source = None if self.request.edit is None else self.request.edit.source_prompt
        if source is None:
            return [(prompt, negative or "")]
        negative = source if negative is None else negative
        return [(source, negative), (prompt, negative)]


def prepared_index(request: JobRequest, index: int) -> int:
    """Returns the index of the first image of a job whose edit is prepared as that of an image."""
    kind = None if request.edit is None else request.edit.kind
    if kind == "interpolate":
        return index
    return index - index % request.count if kind == "edit" else 0


def make_plan(
    pipeline: ImagenPipeline, request: JobRequest, inputs: EditInputs | None = None, index: int = 0
) -> JobPlan:
    """Returns how a job is sampled; `inputs` is what it edits, prepared for the image of an index.

    Raises:
        ConfigError: a setting is out of range, the cascade cannot sample the size, or the image cannot be edited so.
    """
    configured = pipeline.with_settings(request.settings)
    settings = [trained.stage.config.sampling for trained in configured.stages]
    size = pipeline.as_size(request.height, request.width)
    negative = request.negative_prompt is not None
    texts = Texts([request.prompts[0]], [request.negative_prompt or ""] if negative else None)
    configured.check(SampleRequest(texts, size=size))
    scales = [float(one.guidance_scale) for one in settings]
    guided = [is_guided(one, scale) for one, scale in zip(settings, scales, strict=True)]
    unscaled = pipeline.with_settings(
        [{k: v for k, v in changes.items() if k != "guidance_scale"} for changes in request.settings]
    )
    edit = None if request.edit is None else _prepare_edit(unscaled, request, scales, inputs, index)
    if edit is not None:
        unscaled, size, negative = edit.pipeline, edit.size, edit.request.texts.has_negative
    program = Program(
        tuple(one.stage.config.sampling.model_copy(update={"guidance_scale": 1.0}) for one in unscaled.stages),
        tuple(guided),
        negative,
        pipeline.image_size if size is None else size,
        None if edit is None else _edit_program(edit),
        tuple(request.lora),
    )
    area = relative_area(program, pipeline)
    costs = [
        _steps(program, stage) * (1 + is_twice) * math.prod(trained.stage.image_shape[:2]) * area
        for stage, (is_twice, trained) in enumerate(zip(guided, pipeline.stages, strict=True))
    ]
    return JobPlan(request, unscaled, program, tuple(scales), tuple(costs), edit)


def num_walks(program: Program) -> int:
    """Returns how many rows of a batch an image takes."""
    return 1 if program.edit is None else program.edit.walks


def relative_area(program: Program, pipeline: ImagenPipeline) -> float:
    """Returns how many times as many pixels an image takes as one of the cascade's own size."""
    return math.prod(program.size) / math.prod(pipeline.image_size) * num_walks(program)


def _steps(program: Program, index: int) -> int:
    """Returns how many steps a stage takes."""
    steps, edit = program.settings[index].num_inference_steps, program.edit
    if edit is None:
        return steps
    strength = edit.strengths[index]
    return strength_steps(steps, strength) * edit.resample if index >= edit.first_stage and strength else 0


def _prepare_edit(
    pipeline: ImagenPipeline, request: JobRequest, scales: Sequence[float], inputs: EditInputs | None, index: int
) -> PreparedEdit:
    """Returns the edit of an image of a job. Raises ConfigError."""
    edit, editor = request.edit, ImagenEditor(pipeline)
    prompt = [request.prompt(index)]
    settings: dict[str, Any] = {
        "negative_prompt": request.negative_prompt,
        "guidance_scale": np.array(scales, np.float32)[:, None],
    }
    if edit is not None and edit.ends is not None:
        first, second = edit.ends
        settings |= {"height": request.height, "width": request.width}
        share = np.array([index / (request.count - 1)], np.float32)
        return editor.prepare_interpolate(first, second, share, prompt[0], **settings)
    if edit is None or inputs is None:
        raise ConfigError("the image that the job edits is missing: send the job again")
    image = decode_png(inputs.image)
    if edit.kind == "upscale":
        return editor.prepare_upscale(image, prompt, **settings)
    if edit.kind == "outpaint":
        height, width = pipeline.as_size(request.height, request.width) or pipeline.image_size
        position = None if edit.position is None else (edit.position[0], edit.position[1])
        return editor.prepare_outpaint(
            image, (height, width), prompt, position, edit.resample, edit.feather, **settings
        )
    settings |= {"height": request.height, "width": request.width}
    if edit.kind in ("image_to_image", "variations"):
        return editor.prepare_image_to_image(image, prompt, edit.strength, **settings)
    if edit.source_prompt is not None:
        settings |= {name: [one[name] for one in request.settings] for name in ("sampler", "num_inference_steps")}
        return editor.prepare_edit(image, edit.source_prompt, prompt, edit.strength, **settings)
    mask = None if inputs.mask is None else decode_png(inputs.mask)[..., 0]
    return editor.prepare_inpaint(image, mask, prompt, edit.strength, edit.resample, edit.feather, **settings)


def _edit_program(edit: PreparedEdit) -> EditProgram:
    starts = [edit.request.start(index) for index in range(len(edit.pipeline.stages))]
    inputs = [name for name in _ARRAYS if any(getattr(start, name) is not None for start in starts)]
    if edit.request.texts.embeds is not None:
        inputs.append("embeds")
    return EditProgram(
        tuple(start.strength for start in starts),
        starts[-1].resample,
        tuple(inputs),
        edit.request.first_stage,
        edit.walks,
    )


def default_request(stages: int) -> JobRequest:
    """Returns a request for an image with all settings those of the cascade."""
    return JobRequest([""], None, 1, [0], [{} for _ in range(stages)])


def batch_request(rows: Sequence[tuple[JobPlan, int]], size: int, isolated: bool) -> SampleRequest:
    """Returns the request that samples images of jobs as one batch.

    Args:
        rows: plan of the job, with what it edits, and index of the image, of each; plans have the same program.
        size: images of the batch, of one walk or more each; rows are repeated to fill it.
        isolated: whether each image is computed by itself, see `SampleRequest`.
    """
    rows = [*rows, *[rows[0]] * (size - len(rows))]
    program = rows[0][0].program
    texts = [text for plan, index in rows for text in plan.texts(index)]
    negative = [own for _, own in texts] if program.negative else None
    edits = [plan.edit.request for plan, _ in rows if plan.edit is not None]
    walks = num_walks(program)
    return SampleRequest(
        Texts([prompt for prompt, _ in texts], negative, _join([edit.texts.embeds for edit in edits])),
        seed=[seed for plan, index in rows for seed in [plan.request.seeds[index]] * walks],
        batch_size=size * walks,
        guidance_scale=np.repeat(np.array([plan.scales for plan, _ in rows], np.float32).T, walks, axis=1),
        size=_size(rows[0][0]),
        isolated=isolated,
        steps_per_call=STEPS_PER_CALL,
        starts=_join_starts(edits),
        low_res=_join([edit.low_res for edit in edits]),
        first_stage=0 if program.edit is None else program.edit.first_stage,
    )


def _size(plan: JobPlan) -> Size | None:
    """Returns the size in the request of a batch: none for the cascade's own, and for images that are enlarged."""
    if plan.edit is not None:
        return plan.edit.request.size
    return None if plan.program.size == plan.pipeline.image_size else plan.program.size


def _join_starts(edits: Sequence[SampleRequest]) -> list[StageStart]:
    """Returns what each stage begins with for the images of several requests."""
    joined = []
    for parts in zip(*(edit.starts for edit in edits), strict=True):
        arrays: dict[str, Any] = {name: _join([getattr(part, name) for part in parts]) for name in _ARRAYS}
        joined.append(dataclasses.replace(parts[0], **arrays))
    return joined


def _join(parts: Sequence[Any]) -> Any:
    """Returns trees of arrays [1, ...] as one of arrays [N, ...]; None if all are None."""
    given = [part for part in parts if part is not None]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *given) if given else None
