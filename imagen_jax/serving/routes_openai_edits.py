"""OpenAI's `POST /v1/images/edits` and `/v1/images/variations`: forms with the images to edit."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from imagen_jax.serving import json_body
from imagen_jax.serving.edits import EditFiles, with_edit
from imagen_jax.serving.http_errors import HttpError, responses
from imagen_jax.serving.jobs import EditInputs, EditKind, JobRequest
from imagen_jax.serving.requests import EditBody, Strength, Text
from imagen_jax.serving.routes_openai import GenerationBody, GenerationView, generation_view, to_job_request, wait
from imagen_jax.serving.service import Service, client_of
from imagen_jax.serving.uploads import read_image

_MAX_FILES, _MAX_FIELDS = 4, 64
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_JSON_FIELDS = ("settings", "lora", "strength", "stream")  # in a form, everything is text
_INTEGER_FIELDS = ("n", "output_compression", "partial_images")
_Key = Annotated[str | None, Header(description="A name of this request: sent again, it waits for the same job.")]
_File = Annotated[bytes, WithJsonSchema({"type": "string", "format": "binary"})]


class VariationForm(GenerationBody):
    """A form of OpenAI's API for images like one; beside the extensions of generations, it has `strength`."""

    model_config = ConfigDict(json_schema_extra={})
    prompt: Text = Field(default="", description="Extension: what the image shows.")
    image: _File = Field(description="A PNG or JPEG of the aspect of the images to sample.")
    strength: Strength = Field(
        default=None, description="Extension: how much changes, from 0 to 1, as that of a job's edit; 0.5 by default."
    )


class EditForm(VariationForm):
    """A form of OpenAI's API for an edit."""

    prompt: Text = Field(description="What the whole image should show.")
    image: _File = Field(
        description="A PNG or JPEG of the aspect of the images to sample. Without a mask, its transparent areas are "
        "drawn anew; if it has none, all of it is changed as `strength` says."
    )
    mask: _File | None = Field(
        default=None,
        description="A PNG of the image's size, whose transparent areas are drawn anew; of one without such areas, the "
        "white ones.",
    )
    strength: Strength = Field(
        default=None,
        description="Extension: how much changes, from 0 to 1, as that of a job's edit; 1 by default with a mask, else "
        "0.6.",
    )
    source_prompt: Text | None = Field(
        default=None,
        description="Extension: what the image shows. Without a mask, what the prompt says otherwise is changed, and "
        "the rest kept, as by the kind `edit` of a job's edit.",
    )
    input_fidelity: Text | None = Field(default=None, description="Not used: see `strength`.")


def _body(model: type[BaseModel]) -> dict[str, Any]:
    """Returns the entry of an OpenAPI description for a form."""
    schema = model.model_json_schema()
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def edits_router(service: Service) -> APIRouter:
    """Returns the routes of OpenAI's API that edit images."""
    router = APIRouter(tags=["openai"])

    @router.post(
        "/v1/images/edits",
        summary="Edit an image",
        responses=responses(400, 404, 409, 413, 415, 429, 503),
        openapi_extra=_body(EditForm),
    )
    async def edit(request: Request, idempotency_key: _Key = None) -> GenerationView:
        """Draws the masked part of an image anew, or changes all of it, and waits for the images; as generations."""
        return await _answer(service, await _read(request, EditForm, service), request, idempotency_key)

    @router.post(
        "/v1/images/variations",
        summary="Vary an image",
        responses=responses(400, 404, 409, 413, 415, 429, 503),
        openapi_extra=_body(VariationForm),
    )
    async def vary(request: Request, idempotency_key: _Key = None) -> GenerationView:
        """Draws images like one, and waits for them; as generations."""
        return await _answer(service, await _read(request, VariationForm, service), request, idempotency_key)

    return router


async def _answer(service: Service, form: VariationForm, request: Request, key: str | None) -> GenerationView:
    """Adds the job of a form, and returns its images when they are done."""
    asked, inputs = await run_in_threadpool(_to_edit, service, form, key)
    asked = await run_in_threadpool(service.with_lora, asked, form.lora, client_of(request))
    job = await run_in_threadpool(service.submit, asked, client_of(request), inputs)
    job = await wait(service, job, request, is_kept=key is not None)
    return await run_in_threadpool(generation_view, service, job, form, request)


async def _read(request: Request, model: type[VariationForm], service: Service) -> Any:
    """Returns the form of a request. Raises HttpError and RequestValidationError."""
    limit = service.limits.body_bytes
    async with request.form(max_files=_MAX_FILES, max_fields=_MAX_FIELDS, max_part_size=limit) as form:
        fields = await _fields(form)
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        errors = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        for one in errors:
            if one["type"] == "extra_forbidden":
                one["ctx"] = {"fields": sorted(model.model_fields)}
        raise RequestValidationError(errors) from error


async def _fields(form: FormData) -> dict[str, Any]:
    """Returns the fields of a form with values of their types. Raises HttpError for one that is there twice."""
    fields: dict[str, Any] = {}
    for key, value in form.multi_items():
        name = "image" if key == "image[]" else key  # as OpenAI's client names the images of a list
        if name in fields:
            raise HttpError(400, f"{name[:80]} is there more than once: give it once", name[:80])
        if isinstance(value, UploadFile):
            fields[name] = await value.read()
        elif name in ("image", "mask"):
            raise HttpError(400, f"{name} is not a file: send a PNG or JPEG", name)
        elif name in _INTEGER_FIELDS and _INTEGER.fullmatch(value):
            fields[name] = int(value)
        elif name in _JSON_FIELDS:
            fields[name] = _from_json(name, value)
        else:
            fields[name] = value
    return fields


def _from_json(name: str, text: str) -> Any:
    try:
        return json_body.parse(text.encode("utf-8", "replace"))
    except HttpError as error:
        raise HttpError(400, error.message.replace("the body", name, 1), name) from error


def _to_edit(service: Service, form: VariationForm, key: str | None) -> tuple[JobRequest, EditInputs | None]:
    """Returns the engine's request of a form, and what it edits. Raises HttpError and ConfigError."""
    kind: EditKind = "variations"
    mask = source = None
    if isinstance(form, EditForm):
        mask, source = form.mask, form.source_prompt
        if mask is None and read_image(form.image, "image", 3, service.limits).transparent is not None:
            mask = form.image
        kind = "inpaint" if mask is not None else "image_to_image" if source is None else "edit"
    edit = EditBody(kind=kind, image="", strength=form.strength, source_prompt=source)
    asked = to_job_request(form, service, key, edit)
    if isinstance(form, EditForm) and not form.prompt.strip():
        raise HttpError(400, "prompt is empty: say what the image should show", "prompt")
    try:
        return with_edit(asked, edit, EditFiles(form.image, mask), service.pipeline, service.limits)
    except HttpError as error:  # the field as this form has it
        error.message, error.param = error.message.replace("edit.", ""), (error.param or "").removeprefix("edit.")
        raise
