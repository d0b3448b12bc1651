"""What clients get: jobs, images, history and the cascade, as JSON."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, Field

from imagen_jax.serving.auth import Tokens
from imagen_jax.serving.jobs import EditKind, Job, JobImage, Status


class ProgressView(BaseModel):
    """Where a running job is."""

    stage: int = Field(description="Index of the stage, 0 for the base.")
    stages: int = Field(description="Stages in all.")
    step: int = Field(description="Steps that this stage has taken.")
    steps: int = Field(description="Steps of this stage.")
    fraction: float = Field(description="Of the job, from 0 to 1.")
    eta_seconds: float | None = Field(description="Seconds to its end, as far as that is known.")


class ImageView(BaseModel):
    """An image of a job."""

    index: int = Field(description="Of the image in its job.")
    prompt: str
    seed: int = Field(description="The same prompt, settings and seed give the same image.")
    url: str | None = Field(
        description="Where the PNG is; null until it is sampled. With a token it is signed, and works for an hour at "
        "least; fetch the job again for a new one."
    )
    width: int = Field(description="In pixels.")
    height: int = Field(description="In pixels.")
    flagged: bool = Field(description="Whether the cascade's safety checker has flagged it: it is black then.")


class EditView(BaseModel):
    """How the images of a job are made from another one, or between two ends."""

    kind: EditKind
    image: str | None = Field(
        description="Where the image is, at the size that it is used at, as a PNG; as `url` of images. Null for none."
    )
    mask: str | None = Field(description="Where the mask is, likewise: white is drawn anew; null for none.")
    strength: list[float] = Field(description="Of each stage.")
    resample: int = Field(description="How often each step is taken.")
    feather: int | None = Field(description="Pixels over which new parts are faded in; null for the default.")
    position: list[int] | None = Field(description="[top, left] of the image on the canvas; null for the middle.")
    source_prompt: str | None = Field(description="What the image shows; null where it was not asked for.")
    ends: list[int] | list[str] | None = Field(description="Two seeds or prompts that images are between; or null.")


class LoraView(BaseModel):
    """An adapter of a job."""

    name: str
    scale: float


class JobView(BaseModel):
    """A job."""

    id: str
    status: Status
    position: int | None = Field(description="Jobs before it in the queue; null if it is not queued.")
    created: float = Field(description="Unix time.")
    started: float | None = Field(description="Unix time; null before.")
    finished: float | None = Field(description="Unix time; null before.")
    prompts: list[str]
    negative_prompt: str | None
    count: int = Field(description="Images for each prompt.")
    seeds: list[int] = Field(description="One for each image.")
    settings: list[dict[str, Any]] = Field(description="For each stage, what was given in place of its settings.")
    height: int | None
    width: int | None
    priority: int
    edit: EditView | None = Field(description="How its images are made from another one; null for none.")
    lora: list[LoraView] = Field(description="Adapters of fine-tunings, in the order in which they are added.")
    progress: ProgressView | None = Field(description="Null unless it is running.")
    images: list[ImageView]
    error: str | None = Field(description="Why it has failed, one sentence.")
    events: str = Field(description="Where its events are, server-sent.")

    model_config = {
        "json_schema_extra": {
            "examples": [
                {
                    "id": "6tB0m2vP3nYcXq8e",
                    "status": "done",
                    "position": None,
                    "created": 1788000000.0,
                    "started": 1788000000.1,
                    "finished": 1788000002.9,
                    "prompts": ["a red circle"],
                    "negative_prompt": None,
                    "count": 1,
                    "seeds": [7],
                    "settings": [{}, {}],
                    "height": None,
                    "width": None,
                    "priority": 0,
                    "edit": None,
                    "lora": [],
                    "progress": None,
                    "images": [
                        {
                            "index": 0,
                            "prompt": "a red circle",
                            "seed": 7,
                            "url": "/v1/images/6tB0m2vP3nYcXq8e-0.png",
                            "width": 64,
                            "height": 64,
                            "flagged": False,
                        }
                    ],
                    "error": None,
                    "events": "/v1/jobs/6tB0m2vP3nYcXq8e/events",
                }
            ]
        }
    }


class HistoryView(BaseModel):
    """A page of the history, the newest job first."""

    jobs: list[JobView]
    next: str | None = Field(description="For `before` of the next page; null on the last one.")


def image_view(image: JobImage, tokens: Tokens) -> ImageView:
    """Returns an image as clients see it."""
    url = None if image.file is None else tokens.sign(f"/v1/images/{image.file}")
    return ImageView(
        index=image.index,
        prompt=image.prompt,
        seed=image.seed,
        url=url,
        width=image.width,
        height=image.height,
        flagged=image.flagged,
    )


def job_view(job: Job, tokens: Tokens, position: int | None, progress: dict[str, Any] | None) -> JobView:
    """Returns a job as clients see it."""
    request = job.request
    return JobView(
        id=job.id,
        status=job.status,
        position=position,
        created=job.created,
        started=job.started,
        finished=job.finished,
        prompts=request.prompts,
        negative_prompt=request.negative_prompt,
        count=request.count,
        seeds=request.seeds,
        settings=[finite(settings) for settings in request.settings],
        height=request.height,
        width=request.width,
        priority=request.priority,
        edit=_edit_view(job, tokens),
        lora=[LoraView(name=choice.name, scale=choice.scale) for choice in request.lora],
        progress=None if progress is None else ProgressView(**progress),
        images=[image_view(image, tokens) for image in job.images],
        error=job.error,
        events=f"/v1/jobs/{job.id}/events",
    )


def _edit_view(job: Job, tokens: Tokens) -> EditView | None:
    edit = job.request.edit
    if edit is None:
        return None
    image, mask = (tokens.sign(f"/v1/images/{job.id}-{name}.png") for name in ("image", "mask"))
    return EditView(
        kind=edit.kind,
        image=None if edit.image is None else image,
        mask=None if edit.mask is None else mask,
        strength=edit.strength,
        resample=edit.resample,
        feather=edit.feather,
        position=edit.position,
        source_prompt=edit.source_prompt,
        ends=edit.ends,
    )


def finite(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns settings with "inf" in place of infinity, which JSON does not have."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in settings.items()
    }
