"""Images of jobs, and what made an image: its settings, read from a PNG that a client sends."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from imagen_jax.errors import ConfigError
from imagen_jax.io.paths import as_path
from imagen_jax.pipelines.image_record import check_same_model, parse_record
from imagen_jax.serving.http_errors import HttpError, responses
from imagen_jax.serving.service import Service, client_of
from imagen_jax.serving.views import LoraView, finite

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}\.png")


class SettingsView(BaseModel):
    """What made an image."""

    prompt: str
    negative_prompt: str | None
    seed: int
    index: int = Field(description="Of the sample; this server samples index 0 of each seed.")
    settings: list[dict[str, Any]] = Field(description="Of each stage of the cascade that made it.")
    height: int | None = Field(description="Asked for; null for the cascade's.")
    width: int | None
    edit: dict[str, Any] | None = Field(
        description="How it was made from another image, which is known by the SHA-256 of its file; null if it was not."
    )
    lora: list[LoraView] = Field(description="Adapters besides those that this server always has.")
    same_model: bool = Field(description="Whether it was sampled from the weights that this server has.")


def images_router(service: Service) -> APIRouter:
    """Returns the routes of images."""
    router = APIRouter(tags=["images"])

    @router.get(
        "/v1/images/{name}",
        summary="Get an image",
        response_class=FileResponse,
        responses={200: {"content": {"image/png": {}}, "description": "A PNG."}, **responses(404)},
    )
    def get_image(name: Annotated[str, Path(description="From the `url` of an image.")], request: Request) -> Response:
        """Returns a PNG, whose text chunks have the prompt, the seed and all settings; or what a job has edited."""
        headers = {"cache-control": "private, max-age=31536000, immutable"}
        if _NAME.fullmatch(name) and _may_see(service, name, request):
            path = service.engine.image_path(name)
            if path is not None:
                return FileResponse(path, media_type="image/png", headers=headers)
            data = service.engine.input_file(name)
            if data is not None:
                return Response(data, media_type="image/png", headers=headers)
        raise HttpError(404, "there is no image of this name: its job has its address", code="no_such_image")

    @router.post(
        "/v1/settings",
        summary="Read the settings of an image",
        responses=responses(400, 413, 415),
        openapi_extra={
            "requestBody": {
                "required": True,
                "description": "A PNG of this package.",
                "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
            }
        },
    )
    async def read_settings(request: Request) -> SettingsView:
        """Returns what made a PNG of this package; nothing is kept. Pixels are not decoded."""
        return await run_in_threadpool(_settings_view, service, await request.body())

    return router


def _may_see(service: Service, name: str, request: Request) -> bool:
    """Returns whether a client may see an image: one whose URL is signed may."""
    return "signature" in request.query_params or service.may_see_image(name, client_of(request))


def _settings_view(service: Service, data: bytes) -> SettingsView:
    """Returns what made the image of a PNG file. Raises ConfigError."""
    record = parse_record(data, "the image")
    try:
        check_same_model(record, service.pipeline.stages, "the image")
        is_same = len(record.stages) == len(service.pipeline.stages)
    except ConfigError:
        is_same = False
    height, width = record.size or (None, None)
    always = {as_path(name).name for name in service.pipeline.lora_scales}
    settings = record.sampling()
    if record.guidance is not None:
        settings = [part | {"guidance_scale": scale} for part, scale in zip(settings, record.guidance, strict=True)]
    return SettingsView(
        prompt=record.prompt,
        negative_prompt=record.negative_prompt,
        seed=record.seed,
        index=record.index,
        settings=[finite(part) for part in settings],
        height=height,
        width=width,
        edit=None if record.edit is None else record.edit.model_dump(),
        lora=[LoraView(name=one.name, scale=one.scale) for one in record.adapters if one.name not in always],
        same_model=is_same,
    )
