"""OpenAI's image API: `POST /v1/images/generations` and `/v1/models`, for clients that were written for it."""

from __future__ import annotations

import base64
import re
import time
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Path, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from imagen_jax.errors import unknown_name_error
from imagen_jax.serving.event_stream import Events
from imagen_jax.serving.http_errors import HttpError, responses, shown, stopping_error
from imagen_jax.serving.jobs import FINAL, Job, JobRequest
from imagen_jax.serving.requests import EditBody, Integer, JobBody, LoraBody, Seed, Settings, Text, to_request
from imagen_jax.serving.service import Service, client_of

_SIZE = re.compile(r"([0-9]{1,6})x([0-9]{1,6})")
_POLL_SECONDS = 1.0  # between looks at whether the client is still there
# Fields of the API that ask for what this server does anyway, with those values; others are refused by name.
_FIXED = {
    "quality": ("auto", "standard"),
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
    "output_format": ("png",),
    "stream": (False,),
    "partial_images": (0,),
}


class GenerationBody(BaseModel):
    """A request of OpenAI's image API; `seed`, `negative_prompt`, `settings` and `lora` are extensions."""

    model_config = ConfigDict(
        extra="forbid",
        protected_namespaces=(),
        json_schema_extra={
            "examples": [{"prompt": "a red circle", "n": 2, "size": "64x64", "response_format": "b64_json", "seed": 7}]
        },
    )
    prompt: Text = Field(description="What the images should show.")
    model: Text | None = Field(
        default=None, description="The cascade, from `/v1/models`; null for the one that there is."
    )
    n: Integer | None = Field(default=1, description="Images, each with a seed of its own.")
    size: Text | None = Field(
        default=None, description="`WIDTHxHEIGHT` in pixels, or `auto` for the cascade's own size."
    )
    response_format: Literal["url", "b64_json"] | None = Field(
        default="url", description="Whether images are in the response, as PNG in base64, or at an address that it has."
    )
    user: Text | None = Field(default=None, description="Not used, and not kept.")
    safety_identifier: Text | None = Field(default=None, description="Not used, and not kept.")
    style: Text | None = Field(default=None, description="Not used: say it in the prompt.")
    quality: Text | None = Field(
        default=None, description="`auto` or `standard`: the number of steps decides, see `settings`."
    )
    background: Text | None = Field(default=None, description="`auto` or `opaque`.")
    moderation: Text | None = Field(default=None, description="`auto` or `low`; there is none.")
    output_format: Text | None = Field(default=None, description="`png`.")
    output_compression: Integer | None = Field(default=None, description="Not used: PNG has no loss.")
    stream: bool | None = Field(default=None, description="False: `/v1/jobs/ID/events` has events.")
    partial_images: Integer | None = Field(default=None, description="0, likewise.")
    seed: Seed = Field(
        default=None,
        description="Extension: the seed of the first image, in [0, 2^64); the next one has the next integer. Null for "
        "random ones.",
    )
    negative_prompt: Text | None = Field(default=None, description="Extension: what the images should not show.")
    settings: Settings = Field(default=None, description="Extension: as those of a job.")
    lora: list[LoraBody] | None = Field(default=None, description="Extension: likewise.")


class GeneratedImage(BaseModel):
    """An image."""

    url: str | None = Field(default=None, description="Where it is, with the response format `url`.")
    b64_json: str | None = Field(default=None, description="A PNG in base64, with the response format `b64_json`.")
    revised_prompt: str | None = Field(default=None, description="Null: prompts are used as they are.")
    seed: int = Field(description="Extension: the same prompt, settings and seed give the same image.")


class GenerationView(BaseModel):
    """The images."""

    created: int = Field(description="Unix time.")
    data: list[GeneratedImage]
    output_format: Literal["png"] = "png"
    background: Literal["opaque"] = "opaque"
    size: str = Field(description="`WIDTHxHEIGHT`.")
    job: str = Field(description="Extension: the id of the job, for `/v1/jobs/ID`.")


class ModelView(BaseModel):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time since when it is served.")
    owned_by: str


class ModelsView(BaseModel):
    """All models: the cascade."""

    object: Literal["list"] = "list"
    data: list[ModelView]


def openai_router(service: Service) -> APIRouter:
    """Returns the routes of OpenAI's API."""
    router = APIRouter(tags=["openai"])

    @router.post(
        "/v1/images/generations",
        summary="Generate images",
        responses=responses(400, 404, 409, 413, 415, 429, 503),
    )
    async def generate(
        body: GenerationBody,
        request: Request,
        idempotency_key: Annotated[
            str | None, Header(description="A name of this request: sent again, it waits for the same job.")
        ] = None,
    ) -> GenerationView:
        """Generates images, and waits for them: as OpenAI's API, with `seed` and more as extensions.

        Where the client leaves before they are done, its job is canceled, but for one with an idempotency key.
        """
        client = client_of(request)
        asked = service.with_lora(to_job_request(body, service, idempotency_key), body.lora, client)
        job = await run_in_threadpool(service.submit, asked, client)
        job = await wait(service, job, request, is_kept=idempotency_key is not None)
        return await run_in_threadpool(generation_view, service, job, body, request)

    @router.get("/v1/models", summary="List models")
    def list_models() -> ModelsView:
        """Returns the one model that there is: the cascade."""
        return ModelsView(data=[_model(service)])

    @router.get("/v1/models/{model:path}", summary="Look at a model", responses=responses(404))
    def get_model(model: Annotated[str, Path(description="Its id.", examples=["shapes"])]) -> ModelView:
        """Returns the model of this id."""
        _check_model(service, model)
        return _model(service)

    return router


def _model(service: Service) -> ModelView:
    return ModelView(id=service.name, created=int(service.started), owned_by="imagen_jax")


def _check_model(service: Service, name: str) -> None:
    if name != service.name:
        error = unknown_name_error("model", name[:80], [service.name])
        raise HttpError(404, error.problems[0], "model", "model_not_found")


def to_job_request(body: GenerationBody, service: Service, key: str | None, edit: EditBody | None = None) -> JobRequest:
    """Returns the engine's request, without its edit. Raises HttpError for what the server cannot do."""
    if body.model is not None:
        _check_model(service, body.model)
    for name, allowed in _FIXED.items():
        value = getattr(body, name)
        if value is not None and value not in allowed:
            choices = " or ".join(str(choice).lower() for choice in allowed)
            raise HttpError(400, f"{name} is {shown(value)}, which this server does not have: give {choices}", name)
    height, width = _size(body.size)
    job = JobBody(
        prompts=body.prompt,
        negative_prompt=body.negative_prompt,
        count=1 if body.n is None else body.n,
        seeds=body.seed,
        settings=body.settings,
        height=height,
        width=width,
        edit=edit,
    )
    names = {"prompts": "prompt", "count": "n", "seeds": "seed", "height": "size", "width": "size"}
    try:
        return to_request(job, len(service.pipeline.stages), service.limits, key)
    except HttpError as error:
        own = names.get(error.param or "")
        if own is not None:  # the field as this request has it
            error.message, error.param = error.message.replace(str(error.param), own, 1), own
        raise


def _size(text: str | None) -> tuple[int | None, int | None]:
    """Returns (height, width) of a size. Raises HttpError."""
    if text is None or text == "auto":
        return None, None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise HttpError(400, f"size is {shown(text)}: give WIDTHxHEIGHT, such as 64x64, or auto", "size")
    return int(match[2]), int(match[1])


async def wait(service: Service, job: Job, request: Request, is_kept: bool) -> Job:
    """Returns a job that is done.

    Args:
        service: with the engine.
        job: that was added.
        request: that waits for it.
        is_kept: whether the job goes on where the client leaves.

    Raises:
        HttpError: the job has failed or was canceled, the server stops, or it takes too long.
    """
    events = Events(service, job.id, previews=False)
    try:
        # after the subscription: nothing is missed between the two
        current = await run_in_threadpool(service.engine.get, job.id)
        job = current or job
        begun = looked = time.monotonic()
        while job.status not in FINAL:
            event = await events.next(_POLL_SECONDS)
            if event is not None and event.name in FINAL:
                job = event.data
            elif service.closing.is_set():
                raise stopping_error()
            elif time.monotonic() - looked >= _POLL_SECONDS:
                looked = time.monotonic()
                if await request.is_disconnected():
                    if not is_kept:
                        await run_in_threadpool(service.engine.cancel, job.id)
                    raise HttpError(499, "the client has left")
                if looked - begun >= service.limits.wait_seconds:
                    raise _not_done(job)
    finally:
        events.close()
    if job.status == "failed":
        raise HttpError(500, f"the images could not be sampled: {job.error}", code="job_failed")
    if job.status == "canceled":
        raise HttpError(409, "the job was canceled: send the request again for another one", code="job_canceled")
    return job


def _not_done(job: Job) -> HttpError:
    return HttpError(
        503,
        f"the images are not done in time; the job goes on: look at /v1/jobs/{job.id}",
        code="not_done",
        headers={"retry-after": "30"},
    )


def generation_view(service: Service, job: Job, body: GenerationBody, request: Request) -> GenerationView:
    """Returns the response for a job that is done."""
    images, in_body = [], body.response_format == "b64_json"
    for image in job.images:
        assert image.file is not None
        if in_body:
            path = service.engine.image_path(image.file)
            if path is None:
                raise HttpError(409, "the images were removed before they were sent", code="job_removed")
            images.append(GeneratedImage(seed=image.seed, b64_json=base64.b64encode(path.read_bytes()).decode()))
        else:
            base = str(request.base_url).rstrip("/")
            images.append(GeneratedImage(seed=image.seed, url=base + service.tokens.sign(f"/v1/images/{image.file}")))
    size = f"{job.images[0].width}x{job.images[0].height}"
    return GenerationView(created=int(job.finished or job.created), data=images, size=size, job=job.id)
