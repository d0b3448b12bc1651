"""What surrounds every request: its log line and metrics, security headers, who may ask, and a bounded body."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imagen_jax.io.text import printable
from imagen_jax.serving import json_body
from imagen_jax.serving.auth import Tokens, host_name, is_same_site
from imagen_jax.serving.http_errors import HttpError, stopping_error
from imagen_jax.serving.http_limits import HttpLimits
from imagen_jax.serving.metrics import HttpMetrics

_JSON, _PNG, _FORM = "application/json", "image/png", "multipart/form-data"
OPEN_PATHS = ("/", "/healthz", "/readyz", "/openapi.json", "/docs", "/favicon.ico")
OPEN_FOLDERS = ("/page/", "/docs/")
SIGNED_FOLDERS = ("/v1/images/", "/v1/finetunings/")
_FINETUNINGS = "/v1/finetunings"
# The addresses that take a body, with its type; the body of a request to another one is not read.
BODIES = {
    "/v1/jobs": _JSON,
    "/v1/images/generations": _JSON,
    "/v1/images/edits": _FORM,
    "/v1/images/variations": _FORM,
    _FINETUNINGS: _FORM,
    "/v1/settings": _PNG,
}
_WITH_IMAGES = ("/v1/jobs", "/v1/images/edits", "/v1/images/variations")
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_MAX_LOGGED = 200  # characters of a path
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}

logger = logging.getLogger(__name__)


class Observer:
    """Writes one log line and the metrics of each request, and adds security headers.

    Args:
        app: what is observed.
        metrics: where requests are counted.
        cors: whether other origins may read responses.
    """

    def __init__(self, app: ASGIApp, metrics: HttpMetrics, cors: bool = False) -> None:
        self._app, self._metrics = app, metrics
        self._headers = {key: value for key, value in _HEADERS.items() if not (cors and key.startswith("cross-origin"))}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start, status, size, is_stream = time.monotonic(), 0, 0, False
        scope.setdefault("state", {})

        async def observed(message: Message) -> None:
            nonlocal status, size, is_stream
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                is_stream = headers.get("content-type", "").startswith("text/event-stream")
                self._add_headers(scope["path"], headers)
            size += len(message.get("body", b""))
            await send(message)

        await self._app(scope, receive, observed)
        seconds = time.monotonic() - start
        route = getattr(scope.get("route"), "path", "none")
        # 499, as nginx has it, for a client that left before there was a response
        self._metrics.answered(scope["method"], route, status or 499, None if is_stream else seconds)
        _log(scope, status or 499, size, seconds)

    def _add_headers(self, path: str, headers: MutableHeaders) -> None:
        is_page = path == "/" or path.startswith(OPEN_FOLDERS) or path == "/docs"
        headers.setdefault("content-security-policy", _PAGE_POLICY if is_page else _DATA_POLICY)
        # files of the page are asked for again each time, by their ETag
        headers.setdefault("cache-control", "no-cache" if is_page else "no-store")
        for key, value in self._headers.items():
            headers.setdefault(key, value)


def _path(scope: Scope) -> str:
    """Returns the path of a request for a log line: escaped, shortened, and without its query."""
    path = printable(scope["path"])
    return path if len(path) <= _MAX_LOGGED else f"{path[:_MAX_LOGGED]}…"


def _log(scope: Scope, status: int, size: int, seconds: float) -> None:
    client = scope["state"].get("client") or _address(scope)
    logger.info(
        "%s %s %s %s %d %d bytes %.0f ms",
        time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        printable(client),
        printable(scope["method"])[:16],
        _path(scope),
        status,
        size,
        seconds * 1e3,
    )


def _address(scope: Scope) -> str:
    return (scope.get("client") or ("",))[0]


class Failures:
    """Answers for routes that fail: by an id that the log has, too.

    Args:
        app: the routes.
        is_stopping: returns whether the server stops, and may be without its engine.
    """

    def __init__(self, app: ASGIApp, is_stopping: Callable[[], bool]) -> None:
        self._app, self._is_stopping = app, is_stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        is_begun = False

        async def observed(message: Message) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception:
            failure = stopping_error()
            if not self._is_stopping():
                error_id = secrets.token_hex(6)
                logger.exception("error %s in %s %s", error_id, printable(scope["method"]), _path(scope))
                message = f"this is a bug of the server; its log has it as error {error_id}"
                failure = HttpError(500, message, code=error_id)
            if not is_begun:  # else the connection is closed in the middle
                await failure.response()(scope, receive, send)


class Guard:
    """Lets those requests pass that may ask: to a known host, from no other site, with a token where one is needed.

    Args:
        app: what is guarded.
        tokens: that are accepted.
        hosts: names that a Host header may have; empty for all.
        origins: other sites whose pages may ask.
    """

    def __init__(self, app: ASGIApp, tokens: Tokens, hosts: Collection[str], origins: Collection[str]) -> None:
        self._app, self._tokens, self._hosts, self._origins = app, tokens, frozenset(hosts), frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] == "http":
            try:
                scope["state"]["client"] = self._client(scope)
            except HttpError as error:
                return await error.response()(scope, receive, send)
        await self._app(scope, receive, send)

    def _client(self, scope: Scope) -> str:
        """Returns the name of the client. Raises HttpError for one that may not ask."""
        headers, path = Headers(scope=scope), scope["path"]
        host = headers.get("host", "")
        if self._hosts and host_name(host) not in self._hosts:
            raise HttpError(
                403,
                f"the Host header names {printable(host)[:80]!r}, which is not this server: use its address, or start "
                "it with --allowed_hosts",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if scope["method"] not in _SAFE_METHODS and origin and not is_same_site(origin, host, self._origins):
            raise HttpError(
                403,
                f"the request comes from a page of {printable(origin)[:80]!r}: start the server with --cors_origin to "
                "let that site use it",
                code="origin_not_allowed",
            )
        authorization = [value for name, value in scope["headers"] if name == b"authorization"]
        index = self._tokens.index(authorization[0]) if len(authorization) == 1 else None
        if (
            self._tokens.are_needed
            and index is None
            and not self._is_open(scope["method"], path, scope["query_string"])
        ):
            given = "the token is wrong" if authorization else "a token is missing"
            raise HttpError(
                401,
                f"{given}: send the header `Authorization: Bearer TOKEN` with a token of this server",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return self._tokens.client(index, _address(scope))

    def _is_open(self, method: str, path: str, query: bytes) -> bool:
        """Returns whether a request needs no token."""
        if method not in _SAFE_METHODS:
            return False
        if path in OPEN_PATHS or path.startswith(OPEN_FOLDERS):
            return True
        if not path.startswith(SIGNED_FOLDERS):
            return False
        values = parse_qs(query.decode("latin-1"), max_num_fields=8) if query.count(b"&") < 8 else {}
        expires, signature = (values.get(name, [""])[0] for name in ("expires", "signature"))
        return self._tokens.is_signed(path, expires, signature)


class BodyReader:
    """Reads the body of a request within bounds, and refuses JSON that no request needs, before anything parses it.

    Args:
        app: what gets the request with its body.
        limits: of bodies.
    """

    def __init__(self, app: ASGIApp, limits: HttpLimits) -> None:
        self._app, self._limits = app, limits
        self._held = 0  # bytes of all bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in BODIES:
            return await self._app(scope, receive, send)
        body = bytearray()
        try:
            self._check_type(scope)
            if not await self._read(scope, receive, body):
                return  # the client has left
            if BODIES[scope["path"]] == _JSON:
                json_body.check_size(body, self._limits.body_bytes)
                json_body.parse(bytes(body))
            await self._app(scope, _replay(bytes(body), receive), send)
        except HttpError as error:
            await error.response()(scope, receive, send)
        finally:
            self._held -= len(body)

    def _check_type(self, scope: Scope) -> None:
        """Raises HttpError for a body of another type than the address takes."""
        kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
        expected = BODIES[scope["path"]]
        # a page of another site can send other types without asking the browser first
        if kind != expected:
            given = f"the body is of type {printable(kind)[:80]!r}" if kind else "the request has no Content-Type"
            raise HttpError(415, f"{given}: send {expected} with this header")

    async def _read(self, scope: Scope, receive: Receive, body: bytearray) -> bool:
        """Reads into `body`; returns whether the client has sent all of it.

        Raises:
            HttpError: it is too large, or there are too many bodies at once.
        """
        limits, path = self._limits, scope["path"]
        limit = limits.upload_bytes if BODIES[path] == _PNG else limits.body_bytes
        if path in _WITH_IMAGES:
            limit = limits.edit_bytes
        if path == _FINETUNINGS:
            limit = limits.finetune_bytes
        length = Headers(scope=scope).get("content-length", "0")
        too_large = HttpError(413, f"the body is larger than {limit:,} bytes: send a smaller one", code="too_large")
        if length.isdecimal() and (len(length) > 15 or int(length) > limit):
            raise too_large
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            part = message.get("body", b"")
            body += part
            self._held += len(part)
            if len(body) > limit:
                raise too_large
            if self._held > self._limits.all_bodies_bytes:
                text = "the server has too many bodies of requests at once: try again in some seconds"
                raise HttpError(503, text, code="too_many_bodies", headers={"retry-after": "5"})
            if not message.get("more_body", False):
                return True


def _replay(body: bytes, receive: Receive) -> Receive:
    """Returns what receives a body that was read, and then that the client leaves."""
    is_read = False

    async def replay() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
