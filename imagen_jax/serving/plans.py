"""How a job is sampled: by which settings of the cascade, at what cost, and what can share a batch with it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

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
from imagen_jax.serving.jobs import EditInputs, JobRequest
from imagen_jax.stages.sampling import is_guided
from imagen_jax.stages.stage_sampler import strength_steps

STEPS_PER_CALL = 2  # after which a batch can be ended, and tells where it is


@dataclasses.dataclass(frozen=True)
class EditProgram:
    """What the edits of a batch have in common; images and masks are their own.

    Attributes:
        strengths: of each stage, which decide the times of its steps.
        resample: how often each step is taken.
        masked: whether there are masks.
        placed: whether pixels have positions of their own.
        first_stage: index of the stage to begin with.
    """

    strengths: tuple[float, ...]
    resample: int
    masked: bool
    placed: bool
    first_stage: int


@dataclasses.dataclass(frozen=True)
class Program:
    """What the images of a batch have in common; prompts, seeds and guidance scales are their own.

    Attributes:
        settings: of each stage, with the guidance scale left out.
        guided: whether each stage has guidance.
        negative: whether there are negative prompts.
        size: (height, width) of the last stage's images.
        edit: of images that are made from others; None for images from prompts alone.
    """

    settings: tuple[SamplingConfig, ...]
    guided: tuple[bool, ...]
    negative: bool
    size: Size
    edit: EditProgram | None = None


@dataclasses.dataclass(frozen=True)
class JobPlan:
    """How the images of a job are sampled.

    Attributes:
        request: of the job.
        pipeline: the cascade with the job's settings.
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


def make_plan(pipeline: ImagenPipeline, request: JobRequest, inputs: EditInputs | None = None) -> JobPlan:
    """Returns how a job is sampled; `inputs` is what it edits.

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
    edit = None if request.edit is None else _prepare_edit(unscaled, request, scales, inputs)
    if edit is not None:
        unscaled, size = edit.pipeline, edit.size
    program = Program(
        tuple(one.stage.config.sampling.model_copy(update={"guidance_scale": 1.0}) for one in unscaled.stages),
        tuple(guided),
        negative,
        pipeline.image_size if size is None else size,
        None if edit is None else _edit_program(edit),
    )
    area = math.prod(program.size) / math.prod(pipeline.image_size)
    costs = [
        _steps(program, index) * (1 + is_twice) * math.prod(trained.stage.image_shape[:2]) * area
        for index, (is_twice, trained) in enumerate(zip(guided, pipeline.stages, strict=True))
    ]
    return JobPlan(request, unscaled, program, tuple(scales), tuple(costs), edit)


def _steps(program: Program, index: int) -> int:
    """Returns how many steps a stage takes."""
    steps, edit = program.settings[index].num_inference_steps, program.edit
    if edit is None:
        return steps
    strength = edit.strengths[index]
    return strength_steps(steps, strength) * edit.resample if index >= edit.first_stage and strength else 0


def _prepare_edit(
    pipeline: ImagenPipeline, request: JobRequest, scales: Sequence[float], inputs: EditInputs | None
) -> PreparedEdit:
    """Returns the edit of an image of a job. Raises ConfigError."""
    edit, editor = request.edit, ImagenEditor(pipeline)
    if edit is None or inputs is None:
        raise ConfigError("the image that the job edits is missing: send the job again")
    image = decode_png(inputs.image)
    prompt = [request.prompts[0]]
    settings: dict[str, Any] = {
        "negative_prompt": request.negative_prompt,
        "guidance_scale": np.array(scales, np.float32)[:, None],
    }
    if edit.kind == "upscale":
        return editor.prepare_upscale(image, prompt, **settings)
    if edit.kind == "outpaint":
        height, width = pipeline.as_size(request.height, request.width) or pipeline.image_size
        position = None if edit.position is None else (edit.position[0], edit.position[1])
        return editor.prepare_outpaint(
            image, (height, width), prompt, position, edit.resample, edit.feather, **settings
        )
    settings |= {"height": request.height, "width": request.width}
    if edit.kind == "image_to_image":
        return editor.prepare_image_to_image(image, prompt, edit.strength, **settings)
    mask = None if inputs.mask is None else decode_png(inputs.mask)[..., 0]
    return editor.prepare_inpaint(image, mask, prompt, edit.strength, edit.resample, edit.feather, **settings)


def _edit_program(edit: PreparedEdit) -> EditProgram:
    starts = [edit.request.start(index) for index in range(len(edit.pipeline.stages))]
    return EditProgram(
        tuple(start.strength for start in starts),
        starts[-1].resample,
        any(start.mask is not None for start in starts),
        any(start.positions is not None for start in starts),
        edit.request.first_stage,
    )


def default_request(stages: int) -> JobRequest:
    """Returns a request for an image with all settings those of the cascade."""
    return JobRequest([""], None, 1, [0], [{} for _ in range(stages)])


def batch_request(rows: Sequence[tuple[JobPlan, int]], size: int, isolated: bool) -> SampleRequest:
    """Returns the request that samples images of jobs as one batch.

    Args:
        rows: plan of the job, with what it edits, and index of the image, of each; plans have the same program.
        size: of the batch; rows are repeated to fill it.
        isolated: whether each image is computed by itself, see `SampleRequest`.
    """
    rows = [*rows, *[rows[0]] * (size - len(rows))]
    program = rows[0][0].program
    negative = [plan.request.negative_prompt or "" for plan, _ in rows] if program.negative else None
    edits = [plan.edit.request for plan, _ in rows if plan.edit is not None]
    return SampleRequest(
        Texts([plan.request.prompt(index) for plan, index in rows], negative),
        seed=[plan.request.seeds[index] for plan, index in rows],
        batch_size=size,
        guidance_scale=np.array([plan.scales for plan, _ in rows], np.float32).T,
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
        arrays = {"image": _join([part.image for part in parts]), "mask": _join([part.mask for part in parts])}
        positions = [part.positions for part in parts if part.positions is not None]
        own = {name: np.concatenate([one[name] for one in positions]) for name in positions[0]} if positions else None
        joined.append(dataclasses.replace(parts[0], **arrays, positions=own))
    return joined


def _join(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Returns arrays [1, ...] as one [N, ...]; None if they are."""
    arrays = [part for part in parts if part is not None]
    return np.concatenate(arrays) if arrays else None
