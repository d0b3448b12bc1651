"""Requests as bytes, as no client sends them, and how a server answers."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import zlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from benchmarks.serving.server import Server


def format_statuses(counts: Counter[Any]) -> str:
    """Returns statuses with how often they came. Raises AssertionError for an error of the server."""
    wrong = [status for status in counts if isinstance(status, int) and status >= 500 and status != 503]
    if wrong:
        raise AssertionError(f"answers are errors of the server: {counts}")
    return ", ".join(f"{count:,} × {status}" for status, count in sorted(counts.items(), key=str))


async def send_raw(server: Server, data: bytes, source: int = 2, chunks: Iterable[bytes] = ()) -> tuple[Any, int]:
    """Sends bytes, and chunks as long as they are taken; returns the status of the answer and the bytes sent."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), local_addr=(f"127.0.0.{source}", 0))
    sent = len(data)
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            for chunk in chunks:
                await writer.drain()
                if reader.at_eof() or reader._buffer:  # type: ignore[attr-defined]  # it has answered
                    break
                writer.write(chunk)
                sent += len(chunk)
        with contextlib.suppress(ConnectionError, asyncio.TimeoutError):
            line = await asyncio.wait_for(reader.readline(), 60)
            if line:
                return int(line.split()[1]), sent
        return "closed", sent
    finally:
        writer.close()


def make_head(server: Server, path: str, *headers: str, method: str = "POST") -> bytes:
    """Returns a request line and headers, with the blank line after them."""
    host = server.url.removeprefix("http://")
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode()


def make_png(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (64, 64)) -> bytes:
    """Returns a PNG of these chunks after its header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in ((b"IHDR", header), *chunks, (b"IEND", b"")))
