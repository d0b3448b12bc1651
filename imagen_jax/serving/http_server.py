"""The process that serves: uvicorn with bounds on slow clients, and a stop that loses no job."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from imagen_jax.errors import ConfigError
from imagen_jax.serving.auth import is_loopback
from imagen_jax.serving.http_errors import HttpError
from imagen_jax.serving.http_limits import HttpLimits
from imagen_jax.serving.metrics import HttpMetrics

_BACKLOG = 1024
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

logger = logging.getLogger(__name__)


class Stoppable(Protocol):
    """What the server stops before it ends: `begin_stop` ends streams and refuses jobs, `stop` ends the work."""

    def begin_stop(self) -> None:
        """Refuses new work at once."""

    def stop(self, timeout: float) -> None:
        """Finishes what runs, or puts it back."""


def bind(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound, and does not listen yet.

    Raises:
        ConfigError: the address does not exist, or the port is taken or reserved.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, number)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"--host {host!r} --port {port} cannot be used ({reason}): give an address of this machine, and a port "
            "that is free; --port=0 takes any"
        ) from error
    return bound


def url(bound: socket.socket) -> str:
    """Returns the address of a bound socket for a browser on this machine."""
    host, port = bound.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound to
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    elif is_loopback(host) and ":" not in host:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def make_server(app: ASGIApp, limits: HttpLimits, metrics: HttpMetrics, proxies: Sequence[str] = ()) -> uvicorn.Config:
    """Returns the settings of uvicorn.

    Args:
        app: that answers.
        limits: of connections.
        metrics: where dropped connections are counted.
        proxies: addresses of reverse proxies whose X-Forwarded headers are believed.
    """

    def protocol(*args: Any, **kwargs: Any) -> _BoundedProtocol:
        made = _BoundedProtocol(*args, **kwargs)
        made.limits, made.metrics = limits, metrics
        return made

    return uvicorn.Config(
        app,
        log_level="critical",  # what it logs of requests is counted and logged here
        http=protocol,  # type: ignore[arg-type]  # called with keywords, as a class would be
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        timeout_keep_alive=limits.keep_alive_seconds,
        h11_max_incomplete_event_size=limits.header_bytes,
    )


class Server(uvicorn.Server):
    """A server that ends by SIGTERM or SIGINT with its jobs finished or put back, and that reports no signal as such.

    Args:
        config: of `make_server`.
        work: what to stop.
        stop_seconds: for what runs to be finished.
    """

    def __init__(self, config: uvicorn.Config, work: Stoppable, stop_seconds: float) -> None:
        super().__init__(config)
        self._work, self._stop_seconds = work, stop_seconds
        config.timeout_graceful_shutdown = 5  # seconds for responses after the work has ended

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Lets signals stop the server; uvicorn's own would raise them again, and so end the process by them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        if self.should_exit and number == signal.SIGINT:
            logger.warning("stopped at once; jobs that ran are sampled anew when the server starts again")
            os._exit(0)  # the queue is on disk, and survives as after a kill
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts nothing more, finishes what runs or puts it back, answers those who wait, and closes."""
        logger.info("stopping: the queue is kept, and continues when the server starts again")
        for server in self.servers:
            server.close()
        self._work.begin_stop()
        await asyncio.to_thread(self._work.stop, self._stop_seconds)
        await super().shutdown(sockets)


class _BoundedProtocol(H11Protocol):
    """HTTP/1.1 with time limits: for a request to arrive, and for a client to take what is sent to it."""

    limits: HttpLimits
    metrics: HttpMetrics
    _reading: asyncio.TimerHandle | None = None
    _reading_reason = ""
    _writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuses a connection beyond the limit, else waits for a request."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(503, "the server has too many connections: try again in some seconds", "connections")
            return
        self._limit_reading(self.limits.header_seconds, "slow_request")

    def data_received(self, data: bytes) -> None:
        """Reads a part of a request, and limits the time for the rest."""
        super().data_received(data)
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            self._limit_reading(self.limits.body_seconds, "slow_body")
        elif state is h11.IDLE and self.conn.trailing_data[0]:
            self._limit_reading(self.limits.header_seconds, "slow_request")
        else:
            self._stop_reading_limit()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the limits."""
        self._stop_reading_limit()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Limits the time for which a client may take nothing."""
        super().pause_writing()
        self._writing = self._drop_after(self.limits.write_seconds, "slow_reader")

    def resume_writing(self) -> None:
        """Ends the limit: the client takes what is sent."""
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP, or has headers beyond the limit."""
        text = f"this is not a request of HTTP/1.1 with headers of at most {self.limits.header_bytes:,} bytes"
        self._refuse(400, text, "invalid_request")

    def _limit_reading(self, seconds: float, reason: str) -> None:
        # A part that arrives does not begin the time anew; a body after its headers does.
        if self._reading is None or self._reading_reason != reason:
            self._stop_reading_limit()
            self._reading = self._drop_after(seconds, reason)
            self._reading_reason = reason

    def _stop_reading_limit(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _drop_after(self, seconds: float, reason: str) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, self._drop, reason)

    def _drop(self, reason: str) -> None:
        self.metrics.dropped(reason)
        logger.info("%s: connection closed: %s", (self.client or ("",))[0], reason.replace("_", " "))
        self.transport.abort()

    def _refuse(self, status: int, text: str, reason: str) -> None:
        """Sends an error outside of any request, and closes the connection."""
        self.metrics.dropped(reason)
        logger.info("%s: connection refused: %s", (self.client or ("",))[0], reason.replace("_", " "))
        body = bytes(HttpError(status, text).response().body)
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        try:
            parts = [
                self.conn.send(h11.Response(status_code=status, headers=headers)),
                self.conn.send(h11.Data(data=body)),
                self.conn.send(h11.EndOfMessage()),
            ]
        except h11.LocalProtocolError:  # in the middle of another response
            self.transport.abort()
            return
        self.transport.write(b"".join(part for part in parts if part))
        self.transport.close()


def raise_file_limit() -> int:
    """Lets this process open as many files as the system allows it; returns how many."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 1024
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 2**16
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
