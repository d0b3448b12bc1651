"""Jobs: add, look, follow, cancel; and their history."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from imagen_jax.serving.event_stream import event_response, server_sent
from imagen_jax.serving.http_errors import HttpError, responses
from imagen_jax.serving.jobs import FINAL
from imagen_jax.serving.requests import JobBody, check_text, to_request
from imagen_jax.serving.service import Service, client_of
from imagen_jax.serving.views import HistoryView, JobView

JobId = Annotated[str, Path(description="Of the job.", examples=["6tB0m2vP3nYcXq8e"])]
_MAX_QUERY = 200  # characters
_EVENTS = (
    "Server-sent events. `job` comes first, with the job as GET has it, so that whoever connects again misses nothing. "
    "Then `queued` ({position}), `step` (progress), `preview` ({stage, step, images: [{index, png}]}, PNG in base64), "
    "`image` (an image that is done), and at last `done`, `canceled` or `failed` with the job. Comments keep the "
    "connection open while nothing happens. Previews are dropped for a client that is too slow for them."
)


def jobs_router(service: Service) -> APIRouter:
    """Returns the routes of jobs."""
    router = APIRouter(tags=["jobs"])

    @router.post(
        "/v1/jobs",
        status_code=202,
        summary="Add a job to the queue",
        responses=responses(400, 404, 413, 415, 429, 503),
    )
    def add_job(
        body: JobBody,
        request: Request,
        response: Response,
        idempotency_key: Annotated[
            str | None, Header(description="A name of this request: sent again, it returns the same job.")
        ] = None,
    ) -> JobView:
        """Adds a job, which survives a restart of the server, and returns it; GET or its events say how it goes."""
        asked = to_request(body, len(service.pipeline.stages), service.limits, idempotency_key)
        client, inputs = client_of(request), None
        asked = service.with_lora(asked, body.lora, client)
        if body.edit is not None:
            asked, inputs = service.edit(asked, body.edit, client)
        job = service.submit(asked, client, inputs)
        response.headers["location"] = f"/v1/jobs/{job.id}"
        return service.view(job)

    @router.get("/v1/jobs/{job_id}", summary="Look at a job", responses=responses(404))
    def get_job(job_id: JobId, request: Request) -> JobView:
        """Returns a job: where it is in the queue, its progress, its images."""
        return service.view(service.find(job_id, client_of(request)))

    @router.delete("/v1/jobs/{job_id}", summary="Cancel a job", responses=responses(404, 409))
    def cancel_job(job_id: JobId, request: Request) -> JobView:
        """Cancels a job that is queued, or running: it stops within some steps. Images that are done are kept."""
        job = service.find(job_id, client_of(request))
        if job.status in FINAL:
            raise HttpError(
                409, f"the job is {job.status}: DELETE /v1/history/ID removes it with its images", code="job_has_ended"
            )
        return service.view(service.engine.cancel(job_id) or job)

    @router.get(
        "/v1/jobs/{job_id}/events",
        summary="Follow a job",
        description=_EVENTS,
        response_class=StreamingResponse,
        responses={
            200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "The events."},
            **responses(404, 429, 503),
        },
    )
    async def follow_job(job_id: JobId, request: Request) -> StreamingResponse:
        client = client_of(request)
        job = await run_in_threadpool(service.find, job_id, client)
        return event_response(service, client, server_sent(service, job))

    return router


def history_router(service: Service) -> APIRouter:
    """Returns the routes of the history."""
    router = APIRouter(tags=["history"])

    @router.get("/v1/history", summary="List jobs", responses=responses(400))
    def list_history(
        request: Request,
        query: Annotated[str, Query(description="Words that prompts have; empty for all jobs.")] = "",
        before: Annotated[str | None, Query(description="`next` of the page before.")] = None,
        limit: Annotated[int, Query(description="Jobs of a page.", ge=1, le=200)] = 50,
    ) -> HistoryView:
        """Returns a page of the jobs, the newest first. A client with a token of its own sees its own jobs alone."""
        check_text(query, "query", _MAX_QUERY)
        if before is not None:
            check_text(before, "before", _MAX_QUERY)
        client = client_of(request) if service.tokens.are_several else None
        jobs, cursor = service.engine.history(query=query, before=before, limit=limit, client=client)
        return HistoryView(jobs=[service.view(job) for job in jobs], next=cursor)

    @router.delete(
        "/v1/history/{job_id}",
        status_code=204,
        response_class=Response,
        response_description="It is removed.",
        summary="Remove a job with its images",
        responses=responses(404, 409),
    )
    def remove_job(job_id: JobId, request: Request) -> Response:
        """Removes a job that has ended, and its images."""
        job = service.find(job_id, client_of(request))
        if job.status not in FINAL:
            raise HttpError(
                409, f"the job is {job.status}: cancel it first, by DELETE /v1/jobs/ID", code="job_is_active"
            )
        service.engine.delete(job_id)
        return Response(status_code=204)

    return router
