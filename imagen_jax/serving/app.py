"""The application: all routes, with what surrounds them, and the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from imagen_jax.io.version import VERSION
from imagen_jax.serving.api_page import api_page
from imagen_jax.serving.http_errors import add_handlers, responses
from imagen_jax.serving.middleware import OPEN_PATHS, BodyReader, Failures, Guard, Observer
from imagen_jax.serving.routes_finetunings import finetunings_router
from imagen_jax.serving.routes_images import images_router
from imagen_jax.serving.routes_jobs import history_router, jobs_router
from imagen_jax.serving.routes_openai import openai_router
from imagen_jax.serving.routes_openai_edits import edits_router
from imagen_jax.serving.routes_server import server_router
from imagen_jax.serving.service import Service

PAGE = Path(__file__).parent / "page"
API_STYLE = Path(__file__).parent / "api_page.css"
_DESCRIPTION = (
    "Text to images, by a cascade of diffusion models. Errors have one sentence in the form of OpenAI's API. Where the "
    "server has tokens, every request but those for the page, `/healthz` and `/readyz` needs one, in the header "
    "`Authorization: Bearer TOKEN`."
)
_TAGS = {
    "jobs": "Add jobs to the queue, follow and cancel them.",
    "images": "Their images.",
    "history": "Jobs, the newest first.",
    "finetunings": "Teach the cascade something from images, where the server was started with `--finetune_dir`.",
    "openai": "OpenAI's image API, for clients that were written for it.",
    "server": "The cascade, health and metrics.",
}


@dataclasses.dataclass(frozen=True)
class Access:
    """From where requests may come.

    Attributes:
        hosts: names that a Host header may have; () for all.
        origins: other sites whose pages may use the API, such as "https://example.com"; "*" for all.
    """

    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()


def make_app(service: Service, access: Access) -> ASGIApp:
    """Returns the application."""
    app = FastAPI(
        title=f"imagen serve: {service.name}",
        version=VERSION,
        description=_DESCRIPTION,
        openapi_tags=[{"name": name, "description": text} for name, text in _TAGS.items()],
        docs_url=None,  # FastAPI's own page loads scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,
    )
    for make_router in (
        jobs_router,
        images_router,
        history_router,
        finetunings_router,
        openai_router,
        edits_router,
        server_router,
    ):
        app.include_router(make_router(service))
    add_handlers(app)
    app.add_middleware(Failures, is_stopping=service.closing.is_set)
    _add_page(app)
    _complete_document(app)
    guarded: ASGIApp = Guard(BodyReader(app, service.limits), service.tokens, access.hosts, access.origins)
    if access.origins:
        guarded = CORSMiddleware(
            guarded,
            allow_origins=access.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "idempotency-key"],
            expose_headers=["location", "retry-after"],
        )
    return Observer(guarded, service.metrics, cors=bool(access.origins))


def _add_page(app: FastAPI) -> None:
    """Adds the page, and the one that describes the API."""

    files = StaticFiles(directory=PAGE)

    @app.get("/", include_in_schema=False)
    async def get_page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    @app.get("/favicon.ico", include_in_schema=False)
    def get_icon() -> FileResponse:
        return FileResponse(PAGE / "icon.svg")

    @app.get("/docs", include_in_schema=False)
    def get_docs() -> HTMLResponse:
        return HTMLResponse(api_page(app.openapi()))

    @app.get("/docs/style.css", include_in_schema=False)
    def get_docs_style() -> FileResponse:
        return FileResponse(API_STYLE)

    app.mount("/page", files)


def _complete_document(app: FastAPI) -> None:
    """Adds to the OpenAPI document what surrounds the routes, and what they do not know of: tokens and errors."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            components = document["components"]
            components["securitySchemes"] = {
                "token": {"type": "http", "scheme": "bearer", "description": "A token of the server, if it has any."}
            }
            for path, methods in document["paths"].items():
                for operation in methods.values():
                    _complete_operation(operation, is_open=path in OPEN_PATHS)
            for name in ("HTTPValidationError", "ValidationError"):
                components["schemas"].pop(name, None)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documents say


def _complete_operation(operation: dict[str, Any], is_open: bool) -> None:
    """Adds the errors that every route has, and whether it needs a token."""
    answers = operation["responses"]
    answers.pop("422", None)  # what FastAPI takes for a status of its own is 400 here
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    for status, entry in responses(403, 500, 503, *(() if is_open else (401,))).items():
        answers.setdefault(str(status), {"description": entry["description"], "content": content})
    operation["responses"] = dict(sorted(answers.items()))
    if not is_open:
        operation["security"] = [{"token": []}, {}]
