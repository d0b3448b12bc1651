"""The server itself: the cascade it has, whether it lives and is ready, and its metrics."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from imagen_jax.serving.cascade_view import CascadeView, cascade_view
from imagen_jax.serving.http_errors import HttpError, responses, stopping_error
from imagen_jax.serving.service import Service


class HealthView(BaseModel):
    """That the server answers."""

    status: Literal["ok"] = "ok"


class ReadyView(BaseModel):
    """That the worker takes jobs from the queue."""

    status: Literal["ready"] = "ready"
    queued: int = Field(description="Images that wait.")


def server_router(service: Service) -> APIRouter:
    """Returns the routes of the server."""
    router = APIRouter(tags=["server"])
    cascade = cascade_view(
        service.pipeline, service.name, service.examples, service.limits, service.finetuner is not None
    )

    @router.get("/v1/cascade", summary="Describe the cascade")
    def get_cascade() -> CascadeView:
        """Returns the stages of the cascade with all their settings, and what a job may ask for."""
        return cascade

    @router.get("/healthz", summary="Say whether the process lives")
    async def get_health() -> HealthView:
        """Answers as long as the server does; needs no token."""
        return HealthView()

    @router.get("/readyz", summary="Say whether jobs are sampled", responses=responses(503))
    def get_ready() -> ReadyView:
        """Answers 200 once the programs are compiled, 503 before and while the server stops; needs no token."""
        if service.closing.is_set():
            raise stopping_error()
        stats = service.engine.stats()
        if not stats["ready"]:
            message = "the worker is not ready; jobs are accepted, and start when it is: try again in some seconds"
            raise HttpError(503, message, code="not_ready", headers={"retry-after": "5"})
        return ReadyView(queued=stats["queued"])

    @router.get(
        "/metrics",
        summary="Get metrics",
        response_class=PlainTextResponse,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "In Prometheus' format."},
        },
    )
    def get_metrics() -> Response:
        """Returns counters of requests, of the queue and of the worker, for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
