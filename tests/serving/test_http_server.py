"""Clients that are slow, silent or too many, and the stop: a server with small limits before a small app."""

import asyncio
import contextlib
import json
import socket
import threading

import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.serving.http_limits import HttpLimits
from imagen_jax.serving.http_server import Server, bind, make_server, url
from imagen_jax.serving.middleware import BodyReader, Failures
from imagen_jax.serving.serve import ServeSettings, check_access

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n"


class Work:
    """Records what the server asks for."""

    def __init__(self):
        self.calls, self.dropped_reasons = [], []
        self.changed = threading.Condition()

    def begin_stop(self):
        self.calls.append("begin_stop")

    def stop(self, timeout):
        self.calls.append(("stop", timeout))

    def dropped(self, reason):
        with self.changed:
            self.dropped_reasons.append(reason)
            self.changed.notify_all()

    def wait_for_drop(self):
        with self.changed:
            assert self.changed.wait_for(lambda: self.dropped_reasons, 60)
        return self.dropped_reasons


async def app(scope, receive, send):
    """Reads the body and answers, at /long with 128 MB."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(2000 if scope["path"] == "/long" else 0):  # more than the system buffers
        await send({"type": "http.response.body", "body": bytes(2**16), "more_body": True})
    await send({"type": "http.response.body", "body": b"hello"})


@contextlib.contextmanager
def running(**limits):
    """Yields (address, what was asked for) of a server."""
    work = Work()
    with bind("127.0.0.1", 0) as bound:
        server = Server(make_server(app, HttpLimits(**limits), work), work, stop_seconds=7)
        thread = threading.Thread(target=server.run, args=([bound],))
        bound.listen()  # connections wait until the server takes them
        thread.start()
        try:
            yield bound.getsockname()[:2], work
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


def read_all(connection):
    with contextlib.suppress(ConnectionResetError):
        return b"".join(iter(lambda: connection.recv(2**16), b""))
    return b""


@pytest.mark.parametrize(
    "limit, reason, sent",
    [
        ("header_seconds", "slow_request", b""),
        ("header_seconds", "slow_request", b"GET / HT"),
        ("body_seconds", "slow_body", POST + b"12345"),
    ],
)
def test_slow_request_is_dropped(limit, reason, sent):
    with running(**{limit: 0.2}) as (address, work), socket.create_connection(address, timeout=60) as connection:
        connection.sendall(sent)
        answer = read_all(connection)
        assert answer.count(b"hello") == sent.count(GET)
        assert work.wait_for_drop() == [reason]


def test_slow_reader_is_dropped():
    with running(write_seconds=0.2) as (address, work), socket.create_connection(address, timeout=60) as connection:
        connection.sendall(GET.replace(b"/ ", b"/long "))
        assert work.wait_for_drop() == ["slow_reader"]
        assert b"200 OK" in read_all(connection)


def test_patient_client_is_served():
    with running() as (address, work), socket.create_connection(address, timeout=60) as connection:
        for byte in POST + b"1234567890":
            connection.sendall(bytes([byte]))
        answer = connection.recv(2**16)
        connection.sendall(GET + GET)
        while answer.count(b"hello") < 3:
            answer += connection.recv(2**16)
        assert work.dropped_reasons == []


def test_idle_connection_is_closed():
    with running(keep_alive_seconds=0) as (address, _), socket.create_connection(address, timeout=60) as connection:
        connection.sendall(GET)
        assert read_all(connection).endswith(b"hello\r\n0\r\n\r\n")


def test_connections_are_limited():
    with running(connections=2) as (address, work), contextlib.ExitStack() as stack:
        first, _, third = (stack.enter_context(socket.create_connection(address, timeout=60)) for _ in range(3))
        answer = read_all(third)
        assert answer.startswith(b"HTTP/1.1 503") and b"too many connections" in answer
        assert work.wait_for_drop() == ["connections"]
        first.sendall(GET)
        assert b"hello" in first.recv(2**16)


def test_long_headers_are_refused():
    with running(header_bytes=1000) as (address, work), socket.create_connection(address, timeout=60) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 1000)
        answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 400") and b"1,000 bytes" in answer
        assert work.dropped_reasons == ["invalid_request"]


def test_stop_ends_work_before_connections():
    with running() as (address, work), socket.create_connection(address, timeout=60) as connection:
        connection.sendall(GET)
        assert connection.recv(2**16)
    assert work.calls == ["begin_stop", ("stop", 7)]


def test_taken_port_is_refused():
    with bind("127.0.0.1", 0) as bound:
        bound.listen()
        port = bound.getsockname()[1]
        assert url(bound) == f"http://127.0.0.1:{port}/"
        with pytest.raises(ConfigError, match=str(port)):
            bind("127.0.0.1", port)
    for host in ("256.0.0.1", "no.such.host.invalid", "\0"):
        with pytest.raises(ConfigError, match="--host"):
            bind(host, 0)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", ""])
def test_open_address_needs_a_token(host):
    with pytest.raises(ConfigError, match="token"):
        check_access(host, ServeSettings("shapes"))
    check_access(host, ServeSettings("shapes", tokens=["a token of many letters"]))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_loopback_needs_no_token(host):
    check_access(host, ServeSettings("shapes"))


@pytest.mark.parametrize("origin", ["example.com", "https://example.com/page", "ftp://example.com"])
def test_wrong_origin_is_refused(origin):
    with pytest.raises(ConfigError, match="origin"):
        check_access("127.0.0.1", ServeSettings("shapes", origins=[origin]))


def test_all_bodies_together_are_bounded():
    """Bodies that are there at once, of any number of clients; each gives its share back."""

    async def inner(scope, receive, send):
        scope["bodies"].append((await receive())["body"])

    async def ask(reader, bodies, *parts):
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        messages.append({"type": "http.request", "body": b"", "more_body": False})
        headers = [(b"content-type", b"image/png")]
        scope = {"type": "http", "method": "POST", "path": "/v1/settings", "headers": headers, "bodies": bodies}
        sent = []

        async def receive():
            await asyncio.sleep(0)  # the others read meanwhile
            return messages.pop(0)

        async def send(message):
            sent.append(message)

        await reader(scope, receive, send)
        return sent[0]["status"] if sent else 200

    async def all_at_once(count):
        reader, bodies = BodyReader(inner, HttpLimits(all_bodies_bytes=100)), []
        statuses = await asyncio.gather(*(ask(reader, bodies, bytes(10), bytes(10)) for _ in range(count)))
        assert bodies == [bytes(20)] * statuses.count(200)
        assert await ask(reader, bodies, bytes(100)) == 200
        return statuses

    assert asyncio.run(all_at_once(5)) == [200] * 5
    assert set(asyncio.run(all_at_once(20))) == {200, 503}


@pytest.mark.parametrize("is_stopping, status", [(False, 500), (True, 503)])
def test_failure_has_an_id_and_no_details(caplog, is_stopping, status):
    async def failing(scope, receive, send):
        raise ValueError("a detail")

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/\x1b"}
    asyncio.run(Failures(failing, lambda: is_stopping)(scope, None, send))
    error = json.loads(sent[1]["body"])["error"]
    assert sent[0]["status"] == status and "detail" not in error["message"]
    assert is_stopping or (error["code"] in caplog.text and "a detail" in caplog.text and "\x1b" not in caplog.text)
