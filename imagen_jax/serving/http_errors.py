"""Errors of the HTTP server: each is one sentence in the form of OpenAI's API, so that its clients raise their own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from imagen_jax.errors import ConfigError
from imagen_jax.io.text import printable
from imagen_jax.serving.jobs import STOP_RETRY_SECONDS

MAX_SHOWN = 80  # characters of a value in a message
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_SENTENCES = {
    404: "there is nothing at this address: /openapi.json lists what there is",
    405: "this address does not take this method: /openapi.json lists those that it takes",
}


_EXAMPLE: dict[str, Any] = {
    "message": "count is 0: give an integer from 1 to 64",
    "type": "invalid_request_error",
    "param": "count",
    "code": None,
}


class ErrorDetail(BaseModel):
    """What was wrong."""

    message: str = Field(description="One sentence: what was given, what was expected, how to fix it.")
    type: str = Field(description="The kind of error, such as `invalid_request_error` or `rate_limit_error`.")
    param: str | None = Field(None, description="The field it is about, such as `prompts[0]`.")
    code: str | None = Field(None, description="A name of the error for programs, such as `queue_full`.")


class ErrorBody(BaseModel):
    """The body of every response with a status of 400 and above, as OpenAI's API has it."""

    error: ErrorDetail

    model_config = ConfigDict(json_schema_extra={"examples": [{"error": _EXAMPLE}]})


class HttpError(Exception):
    """A request that cannot be answered.

    Args:
        status: of the response.
        message: one sentence.
        param: the field it is about.
        code: a name for programs.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """Returns the response."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        # control characters and lone surrogates of what was given, which neither a terminal nor UTF-8 holds
        message = printable(self.message)
        param = None if self.param is None else printable(self.param)
        content = {"error": {"message": message, "type": kind, "param": param, "code": self.code}}
        return JSONResponse(content, self.status, self.headers)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the entries of an OpenAPI description for errors."""
    texts = {
        400: "The request is wrong: its message says what, and how to fix it.",
        401: "The token is missing or wrong.",
        403: "The request comes from a web page of another site, or names another host.",
        404: "There is no such thing, or it belongs to another client.",
        409: "It is in a state that does not allow this.",
        413: "The body is too large.",
        415: "The body is of another type than this address takes.",
        429: "The queue is full, or this client has too many streams: `Retry-After` has the seconds to wait.",
        500: "The job has failed, or the server has a bug; the message says which.",
        503: "The server is stopping, or its worker has failed: `Retry-After` has the seconds to wait.",
    }
    return {status: {"model": ErrorBody, "description": texts[status]} for status in statuses}


def stopping_error() -> HttpError:
    """Returns the error for what a server that stops does not begin."""
    return HttpError(
        503,
        f"the server is stopping; jobs that it has are kept: try again in {STOP_RETRY_SECONDS} seconds",
        code="stopping",
        headers={"retry-after": str(STOP_RETRY_SECONDS)},
    )


def shown(value: object) -> str:
    """Returns a value for a message, cut off where it is long."""
    text = repr(value)
    return printable(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…")


def add_handlers(app: FastAPI) -> None:
    """Lets an app answer errors in the form of `ErrorBody`."""

    async def on_http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HttpError)
        return error.response()

    async def on_config_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ConfigError)
        return HttpError(400, "; ".join(error.problems)).response()

    async def on_validation_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _validation_error(error).response()

    async def on_http_exception(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = _SENTENCES.get(error.status_code, f"the request cannot be answered: {error.detail}")
        return HttpError(error.status_code, message, headers=error.headers).response()

    app.add_exception_handler(HttpError, on_http_error)
    app.add_exception_handler(ConfigError, on_config_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_exception)


def _validation_error(error: RequestValidationError) -> HttpError:
    """Returns the first mistake that the types of a request show, as one sentence."""
    first = error.errors()[0]
    place, *path = first["loc"]
    name = _name(path)
    if first["type"] == "missing" and not path:
        return HttpError(400, "the request has no body: send JSON, see /openapi.json")
    if first["type"] == "missing":
        return HttpError(400, f"{name} is missing: see /openapi.json for the fields of this request", name)
    if first["type"] == "extra_forbidden":
        return unknown_field(str(path[-1]), first.get("ctx", {}).get("fields", ()))
    if not path:
        return HttpError(400, f"the body is {shown(first['input'])}: send a JSON object, see /openapi.json")
    given = f"{name} is {shown(first['input'])}" if place in ("body", "query") else name
    expected = str(first["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return HttpError(400, f"{given}: give {expected}", name)


def unknown_field(name: str, known: Any = ()) -> HttpError:
    """Returns the error for a field that a request does not have."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    hint = f": did you mean {nearest[0]!r}?" if nearest else ": leave it out; /openapi.json has the fields"
    return HttpError(400, f"{shown(name)} is not a field of this request{hint}", name[:MAX_SHOWN], "unknown_parameter")


def _name(path: list[Any]) -> str:
    """Returns the name of a field, such as `prompts[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text[:MAX_SHOWN]
