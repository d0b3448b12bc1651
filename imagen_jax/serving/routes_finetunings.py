"""Fine-tunings: teach the cascade something from images, follow it, and take what it has learned."""

from __future__ import annotations

import re
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from imagen_jax.serving import json_body
from imagen_jax.serving.event_stream import event_response, server_sent_finetuning
from imagen_jax.serving.finetuning_views import FinetuningsView, FinetuningView, finetuning_view
from imagen_jax.serving.finetunings import Finetuning, UploadedSubject
from imagen_jax.serving.http_errors import HttpError, responses, shown
from imagen_jax.serving.requests import Integer, Number, Text, check_range, check_text
from imagen_jax.serving.service import ClientFinetuner, Service, client_of
from imagen_jax.serving.uploads import read_subject
from imagen_jax.training.finetune import FinetuneSettings

FinetuningId = Annotated[str, Path(description="Of the fine-tuning.", examples=["6tB0m2vP3nYcXq8e"])]
_Index = Annotated[int, Path(description="Of the image, from 0.", ge=0, le=10**6)]
_Stage = Annotated[int, Path(description="Index of the stage.", ge=0, le=99)]
_Step = Annotated[int, Path(description="Of the run.", ge=0, le=10**8)]
_File = Annotated[bytes, WithJsonSchema({"type": "string", "format": "binary"})]
_MAX_FIELDS = 32
_MAX_NAME = 100  # characters of a token or a class
_MAX_STEPS, _MAX_RANK, _MAX_PRIOR, _MAX_RATE, _MAX_SEED = 20_000, 128, 2_000, 1.0, 2**31 - 1
_IMAGES = ("images", "images[]")
_INTEGERS = ("steps", "rank", "prior_images", "seed")
_NUMBER = re.compile(r"-?[0-9]{1,20}")
_EVENTS = (
    "Server-sent events: `finetuning` with the fine-tuning as GET has it, first and whenever it has changed, at most "
    "once a second; and at last `done`, `stopped`, `failed` or `deleted`. Comments keep the connection open."
)
_PNG = {200: {"content": {"image/png": {}}, "description": "A PNG."}, **responses(400, 404)}


class FinetuningForm(BaseModel):
    """What a cascade is taught, by low-rank adapters of all its stages."""

    model_config = ConfigDict(extra="forbid")
    images: list[_File] = Field(
        description="PNG or JPEG files of the subject, at least as large as the images of the cascade; the field is "
        "there once for each."
    )
    captions: list[str | None] | None = Field(
        default=None,
        description="A JSON list with a caption for each image, or null for `a TOKEN`. Captions that say all else in "
        "the image teach the subject and not its surroundings; they name the token.",
    )
    token: Text = Field(description="What names the subject in prompts: a rare word and what it is, as in `sks dog`.")
    class_name: Text = Field(
        default="",
        description="What it is one of, as in `dog`: the cascade draws such images first, and keeps how it does that. "
        "Empty for none.",
    )
    initializer: Text = Field(
        default="",
        description="A word that the text encoder knows, as which the token begins: it is then learned beside the "
        "adapters. Empty leaves the text encoder as it is.",
    )
    steps: Integer = Field(
        default=0, description="Of each stage, up to 20,000; 0 for a number that follows from that of the images."
    )
    rank: Integer = Field(
        default=0, description="Of the adapters, up to 128; 0 for 8, and 32 in super-resolution stages."
    )
    learning_rate: Number = Field(default=0.0, description="Up to 1; 0 for one that follows from each stage's own.")
    prior_images: Integer = Field(default=200, description="Images of the class, 1 to 2,000.")
    seed: Integer = Field(default=0, description="Of training and of the images of the class, in [0, 2^31).")


_BODY = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": {"schema": FinetuningForm.model_json_schema()}},
    }
}


def finetunings_router(service: Service) -> APIRouter:
    """Returns the routes of fine-tunings."""
    router = APIRouter(tags=["finetunings"])

    @router.post(
        "/v1/finetunings",
        status_code=202,
        summary="Teach the cascade something",
        responses=responses(400, 404, 413, 415, 429, 503),
        openapi_extra=_BODY,
    )
    async def add_finetuning(request: Request, response: Response) -> FinetuningView:
        """Adds a fine-tuning, which survives a restart of the server; one is trained at a time, others wait."""
        mine = service.finetuner_for(client_of(request))
        settings, images = await _read(request, service)
        one = await run_in_threadpool(mine.add, settings, images)
        response.headers["location"] = f"/v1/finetunings/{one.id}"
        return await run_in_threadpool(finetuning_view, service, one)

    @router.get("/v1/finetunings", summary="List fine-tunings", responses=responses(404))
    def list_finetunings(request: Request) -> FinetuningsView:
        """Returns the fine-tunings, the newest first. A client with a token of its own sees its own alone."""
        mine = service.finetuner_for(client_of(request))
        return FinetuningsView(finetunings=[finetuning_view(service, one) for one in mine.all()])

    @router.get("/v1/finetunings/{finetuning_id}", summary="Look at a fine-tuning", responses=responses(404))
    def get_finetuning(finetuning_id: FinetuningId, request: Request) -> FinetuningView:
        """Returns a fine-tuning: its place in the queue, its losses and previews, its result."""
        return finetuning_view(service, service.finetuner_for(client_of(request)).find(finetuning_id))

    @router.post(
        "/v1/finetunings/{finetuning_id}/stop", summary="Stop a fine-tuning", responses=responses(404, 409, 503)
    )
    def stop_finetuning(finetuning_id: FinetuningId, request: Request) -> FinetuningView:
        """Stops one that waits or runs; what runs saves after its step, so that it can be continued."""
        return finetuning_view(service, service.finetuner_for(client_of(request)).end(finetuning_id))

    @router.post(
        "/v1/finetunings/{finetuning_id}/continue",
        summary="Continue a fine-tuning",
        responses=responses(404, 409, 503),
    )
    def continue_finetuning(finetuning_id: FinetuningId, request: Request) -> FinetuningView:
        """Puts one that was stopped or has failed back into the queue; it continues where it was."""
        return finetuning_view(service, service.finetuner_for(client_of(request)).resume(finetuning_id))

    @router.delete(
        "/v1/finetunings/{finetuning_id}",
        status_code=204,
        response_class=Response,
        response_description="It is deleted.",
        summary="Delete a fine-tuning",
        responses=responses(404, 409, 503),
    )
    def delete_finetuning(finetuning_id: FinetuningId, request: Request) -> Response:
        """Deletes one that does not run, with its images and its adapter; jobs that wait for that will fail."""
        service.finetuner_for(client_of(request)).remove(finetuning_id)
        return Response(status_code=204)

    @router.get(
        "/v1/finetunings/{finetuning_id}/events",
        summary="Follow a fine-tuning",
        description=_EVENTS,
        response_class=StreamingResponse,
        responses={
            200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "The events."},
            **responses(404, 429, 503),
        },
    )
    async def follow_finetuning(finetuning_id: FinetuningId, request: Request) -> StreamingResponse:
        client = client_of(request)
        service.finetuner_for(client).find(finetuning_id)
        return event_response(service, client, server_sent_finetuning(service, client, finetuning_id))

    _add_files(router, service)
    return router


def _add_files(router: APIRouter, service: Service) -> None:
    """Adds the routes of files, whose addresses are signed where there are tokens."""
    folder = "/v1/finetunings/{finetuning_id}"

    def found(finetuning_id: str, request: Request) -> tuple[ClientFinetuner, Finetuning]:
        """Returns a fine-tuning, also that of another client by a signed address."""
        mine = service.finetuner_for(client_of(request))
        one = mine.finetuner.get(finetuning_id)
        return mine, one if one is not None and _is_signed(service, request) else mine.find(finetuning_id)

    @router.get(f"{folder}/images/{{index}}.png", summary="Get an image", response_class=FileResponse, responses=_PNG)
    def get_image(finetuning_id: FinetuningId, index: _Index, request: Request) -> FileResponse:
        """Returns an image that the cascade learns from, as it was kept."""
        mine, one = found(finetuning_id, request)
        return _file(mine.finetuner.image_path(one, index), "image/png")

    @router.get(
        f"{folder}/previews/{{stage}}/{{step}}.png",
        summary="Get a preview",
        response_class=FileResponse,
        responses=_PNG,
    )
    def get_preview(finetuning_id: FinetuningId, stage: _Stage, step: _Step, request: Request) -> FileResponse:
        """Returns samples at a step of a stage's run."""
        mine, one = found(finetuning_id, request)
        return _file(mine.finetuner.preview_path(one, stage, step), "image/png")

    @router.get(
        f"{folder}/before_after.png",
        summary="Get samples before and after",
        response_class=FileResponse,
        responses=_PNG,
    )
    def get_before_after(finetuning_id: FinetuningId, request: Request) -> FileResponse:
        """Returns a grid of samples of the same prompts and noise, before and after."""
        mine, one = found(finetuning_id, request)
        return _file(mine.finetuner.before_after_path(one), "image/png")

    @router.get(
        f"{folder}/adapter.zip",
        summary="Get the adapter",
        response_class=FileResponse,
        responses={200: {"content": {"application/zip": {}}, "description": "A ZIP file."}, **responses(404, 503)},
    )
    def get_adapter(finetuning_id: FinetuningId, request: Request) -> FileResponse:
        """Returns the adapter of one that is done, for `--lora` and `ImagenPipeline.load_lora`, as a ZIP file."""
        mine, one = found(finetuning_id, request)
        return _file(mine.archive_path(one), "application/zip", f"{one.name}.zip")


def _is_signed(service: Service, request: Request) -> bool:
    query = request.query_params
    return service.tokens.is_signed(request.url.path, query.get("expires", ""), query.get("signature", ""))


def _file(path: FilePath | None, media_type: str, name: str | None = None) -> FileResponse:
    """Returns a file. Raises HttpError if there is none."""
    if path is None:
        text = "there is no such file of this fine-tuning, or not yet: GET /v1/finetunings/ID has the addresses"
        raise HttpError(404, text, code="no_such_file")
    headers = {"cache-control": "private, max-age=3600"}
    return FileResponse(path, media_type=media_type, filename=name, headers=headers)


async def _read(request: Request, service: Service) -> tuple[FinetuneSettings, list[UploadedSubject]]:
    """Returns what a form asks for. Raises HttpError and RequestValidationError."""
    limits = service.limits
    # one more than is allowed, so that the sentence about it is ours
    async with request.form(
        max_files=limits.finetune_images + 1, max_fields=_MAX_FIELDS, max_part_size=limits.body_bytes
    ) as form:
        fields = await _fields(form)
    try:
        body = FinetuningForm.model_validate(fields)
    except ValidationError as error:
        errors = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        for one in errors:
            if one["type"] == "extra_forbidden":
                one["ctx"] = {"fields": sorted(FinetuningForm.model_fields)}
        raise RequestValidationError(errors) from error
    return await run_in_threadpool(_checked, body, service)


async def _fields(form: FormData) -> dict[str, Any]:
    """Returns the fields of a form with values of their types. Raises HttpError."""
    fields: dict[str, Any] = {}
    for key, value in form.multi_items():
        if key in _IMAGES:
            if not isinstance(value, UploadFile):
                raise HttpError(400, "images is not a file: send PNG or JPEG files", "images")
            fields.setdefault("images", []).append(await value.read())
        elif isinstance(value, UploadFile):
            raise HttpError(400, f"{shown(key)} is a file: send images as `images`", key[:80])
        elif key in fields:
            raise HttpError(400, f"{key[:80]} is there more than once: give it once", key[:80])
        elif key == "captions":
            fields[key] = _json("captions", value)
        elif key in _INTEGERS and _NUMBER.fullmatch(value):
            fields[key] = int(value)
        elif key == "learning_rate":
            fields[key] = _json(key, value)
        else:
            fields[key] = value
    return fields


def _json(name: str, text: str) -> Any:
    try:
        return json_body.parse(text.encode("utf-8", "replace"))
    except HttpError as error:
        raise HttpError(400, error.message.replace("the body", name, 1), name) from error


def _checked(body: FinetuningForm, service: Service) -> tuple[FinetuneSettings, list[UploadedSubject]]:
    """Returns the settings and the images of a form. Raises HttpError."""
    limits = service.limits
    if not body.token.strip():
        raise HttpError(400, "token is empty: give a rare word and what it is, such as sks dog", "token")
    for name in ("token", "class_name", "initializer"):
        check_text(getattr(body, name), name, _MAX_NAME)
    check_range("steps", body.steps, 0, _MAX_STEPS)
    check_range("rank", body.rank, 0, _MAX_RANK)
    check_range("prior_images", body.prior_images, 1, _MAX_PRIOR)
    check_range("seed", body.seed, 0, _MAX_SEED)
    if not 0 <= body.learning_rate <= _MAX_RATE:
        text = f"learning_rate is {shown(body.learning_rate)}: give a number from 0 to {_MAX_RATE:g}"
        raise HttpError(400, text, "learning_rate")
    count = len(body.images)
    if not 1 <= count <= limits.finetune_images:
        raise HttpError(400, f"images has {count} files: give 1 to {limits.finetune_images}", "images")
    captions = [""] * count if body.captions is None else [caption or "" for caption in body.captions]
    if len(captions) != count:
        text = f"captions has {len(captions)} texts for {count} images: give one for each, or null"
        raise HttpError(400, text, "captions")
    for index, caption in enumerate(captions):
        check_text(caption, f"captions[{index}]", limits.prompt_length)
    images = [
        UploadedSubject(
            read_subject(data, f"images[{index}]", service.pipeline, limits), " ".join(captions[index].split())
        )
        for index, data in enumerate(body.images)
    ]
    settings = FinetuneSettings(
        token=" ".join(body.token.split()),
        class_name=" ".join(body.class_name.split()),
        initializer=" ".join(body.initializer.split()),
        steps=body.steps,
        rank=body.rank,
        learning_rate=body.learning_rate,
        prior_images=body.prior_images,
        seed=body.seed,
    )
    return settings, images
