"""How a job is sampled: by which settings of the cascade, at what cost, and what can share a batch with it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from imagen_jax.config.schema import SamplingConfig
from imagen_jax.images.array import Size
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.request import SampleRequest
from imagen_jax.pipelines.texts import Texts
from imagen_jax.serving.jobs import JobRequest
from imagen_jax.stages.sampling import is_guided

STEPS_PER_CALL = 2  # after which a batch can be ended, and tells where it is


@dataclasses.dataclass(frozen=True)
class Program:
    """What the images of a batch have in common; prompts, seeds and guidance scales are their own.

    Attributes:
        settings: of each stage, with the guidance scale left out.
        guided: whether each stage has guidance.
        negative: whether there are negative prompts.
        size: (height, width) of the last stage's images.
    """

    settings: tuple[SamplingConfig, ...]
    guided: tuple[bool, ...]
    negative: bool
    size: Size


@dataclasses.dataclass(frozen=True)
class JobPlan:
    """How the images of a job are sampled.

    Attributes:
        request: of the job.
        pipeline: the cascade with the job's settings.
        program: that of its images.
        scales: guidance scale of each stage.
        stage_costs: steps × evaluations × pixels of an image in each stage.
    """

    request: JobRequest
    pipeline: ImagenPipeline
    program: Program
    scales: tuple[float, ...]
    stage_costs: tuple[float, ...]


def make_plan(pipeline: ImagenPipeline, request: JobRequest) -> JobPlan:
    """Returns how a job is sampled.

    Raises:
        ConfigError: a setting is out of range, or the cascade cannot sample the size.
    """
    configured = pipeline.with_settings(request.settings)
    settings = [trained.stage.config.sampling for trained in configured.stages]
    size = pipeline.as_size(request.height, request.width)
    negative = request.negative_prompt is not None
    texts = Texts([request.prompts[0]], [request.negative_prompt or ""] if negative else None)
    configured.check(SampleRequest(texts, size=size))
    scales = [float(one.guidance_scale) for one in settings]
    guided = [is_guided(one, scale) for one, scale in zip(settings, scales, strict=True)]
    program = Program(
        tuple(one.model_copy(update={"guidance_scale": 1.0}) for one in settings),
        tuple(guided),
        negative,
        pipeline.image_size if size is None else size,
    )
    unscaled = [{k: v for k, v in changes.items() if k != "guidance_scale"} for changes in request.settings]
    area = math.prod(program.size) / math.prod(pipeline.image_size)
    costs = [
        one.num_inference_steps * (1 + is_twice) * math.prod(trained.stage.image_shape[:2]) * area
        for one, is_twice, trained in zip(settings, guided, configured.stages, strict=True)
    ]
    return JobPlan(request, pipeline.with_settings(unscaled), program, tuple(scales), tuple(costs))


def default_request(stages: int) -> JobRequest:
    """Returns a request for an image with all settings those of the cascade."""
    return JobRequest([""], None, 1, [0], [{} for _ in range(stages)])


def batch_request(rows: Sequence[tuple[JobPlan, int]], size: int, isolated: bool) -> SampleRequest:
    """Returns the request that samples images of jobs as one batch.

    Args:
        rows: plan of the job and index of the image, of each; plans have the same program.
        size: of the batch; rows are repeated to fill it.
        isolated: whether each image is computed by itself, see `SampleRequest`.
    """
    rows = [*rows, *[rows[0]] * (size - len(rows))]
    program = rows[0][0].program
    negative = [plan.request.negative_prompt or "" for plan, _ in rows] if program.negative else None
    return SampleRequest(
        Texts([plan.request.prompt(index) for plan, index in rows], negative),
        seed=[plan.request.seeds[index] for plan, index in rows],
        batch_size=size,
        guidance_scale=np.array([plan.scales for plan, _ in rows], np.float32).T,
        size=None if program.size == rows[0][0].pipeline.image_size else program.size,
        isolated=isolated,
        steps_per_call=STEPS_PER_CALL,
    )
