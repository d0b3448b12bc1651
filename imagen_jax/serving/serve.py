"""Serve a cascade over HTTP until the process is told to stop."""

from __future__ import annotations

import dataclasses
import logging
import socket
from collections.abc import Sequence

from imagen_jax.errors import ConfigError
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.serving.app import Access, make_app
from imagen_jax.serving.auth import SHORT_TOKEN, Tokens, host_name, is_loopback
from imagen_jax.serving.engine import Engine
from imagen_jax.serving.finetuner import Finetuner
from imagen_jax.serving.http_limits import HttpLimits
from imagen_jax.serving.http_server import Server, make_server, raise_file_limit, url
from imagen_jax.serving.metrics import HttpMetrics
from imagen_jax.serving.service import Service

_OTHER_FILES = 256  # that a process has open besides its connections

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ServeSettings:
    """How a cascade is served.

    Attributes:
        name: of the cascade, as clients see it.
        examples: prompts that the page offers.
        tokens: of clients; () lets everybody in who reaches the server.
        hosts: names that requests may use for the server besides its own; "*" for all.
        origins: other sites whose pages may use the API.
        proxies: addresses of reverse proxies whose X-Forwarded headers are believed.
        limits: of requests.
        stop_seconds: for what runs to be finished when the server stops; it is put back into the queue after them.
    """

    name: str
    examples: Sequence[str] = ()
    tokens: Sequence[str] = ()
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    proxies: Sequence[str] = ()
    limits: HttpLimits = HttpLimits()
    stop_seconds: float = 20


def check_access(host: str, settings: ServeSettings) -> None:
    """Raises ConfigError for a server that anybody could use who reaches this machine."""
    if not is_loopback(host) and not settings.tokens:
        raise ConfigError(
            f"--host {host!r} can be reached from other machines, and there is no token: give --token_file=FILE or "
            "$IMAGEN_TOKEN, for example the text of python -c 'import secrets; print(secrets.token_urlsafe())', or "
            "leave --host out"
        )
    if any(len(token) < SHORT_TOKEN for token in settings.tokens):
        logger.warning("a token has fewer than %d characters, and can be guessed: take a longer one", SHORT_TOKEN)
    for origin in settings.origins:
        if origin != "*" and not (origin.startswith(("http://", "https://")) and origin.count("/") == 2):
            raise ConfigError(f"--cors_origin {origin!r} is not an origin: give for example https://example.com")


def serve(
    engine: Engine,
    pipeline: ImagenPipeline,
    bound: socket.socket,
    settings: ServeSettings,
    finetuner: Finetuner | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT; jobs that run are then finished, or put back into the queue.

    Args:
        engine: not started yet.
        pipeline: the cascade that it samples from.
        bound: a socket from `http_server.bind`.
        settings: of the server.
        finetuner: not started yet; None for a server that teaches nothing.
    """
    limits = settings.limits
    connections = min(limits.connections, max(1, raise_file_limit() - _OTHER_FILES))
    limits = dataclasses.replace(limits, connections=connections, streams=min(limits.streams, connections))
    metrics = HttpMetrics(engine.stats)
    tokens = Tokens(settings.tokens)
    service = Service(engine, pipeline, settings.name, settings.examples, tokens, limits, metrics, finetuner)
    app = make_app(service, Access(_hosts(bound, settings), settings.origins))
    config = make_server(app, limits, metrics, settings.proxies)
    if finetuner is not None:
        finetuner.start()
    engine.start()
    logger.info("serving %s at %s", settings.name, url(bound))
    Server(config, service, settings.stop_seconds).run([bound])


def _hosts(bound: socket.socket, settings: ServeSettings) -> list[str]:
    """Returns the names that a Host header may have; [] for all.

    A page of another site can let its own name lead to this machine, and would then be of the same origin as the
    server: on a loopback address no token stops it, and the Host header tells it apart.
    """
    host = bound.getsockname()[0]
    if "*" in settings.hosts or (not is_loopback(host) and not settings.hosts):
        return []
    return [*{"localhost", "127.0.0.1", "::1", host_name(f"[{host}]" if ":" in host else host), *settings.hosts}]
