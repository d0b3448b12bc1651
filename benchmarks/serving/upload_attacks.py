"""Attacks by images to edit: bombs, wrong and damaged files, forms, slow uploads; and the sentence that each gets."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import io
import struct
import time
import zlib
from collections import Counter
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks.serving.raw_http import format_statuses, make_head, make_png, send_raw
from benchmarks.serving.server import Server

_SENTENCE = 300  # characters of an answer, at most
_FORM = "Content-Type: multipart/form-data; boundary=b"
_SLOW_CLIENTS = 200
_SLOW_SECONDS = 75  # a body has 60


def _file(pixels: np.ndarray, kind: str = "PNG", **settings: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, **settings)
    return data.getvalue()


def _with_size(data: bytes, width: int, height: int) -> bytes:
    """Returns a JPEG file whose header claims another size."""
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


@functools.cache
def bomb_files() -> dict[str, bytes]:
    """Returns images that are small and pretend to be large, or become so."""
    zeros = zlib.compress(bytes(2**26), 9)  # 64 MiB in 64 KiB
    text = b"Comment\0\0" + zlib.compress(b" " * 2**30, 9)
    profile = b"icc\0\0" + zlib.compress(b"x" * 2**30, 9)
    jpeg = _file(np.zeros((64, 64, 3), np.uint8), "JPEG")
    return {
        "65,000 × 65,000 pixels": make_png((b"IDAT", zeros), size=(65_000, 65_000)),
        "2^31 - 1 pixels in a row": make_png((b"IDAT", zeros), size=(2**31 - 1, 1)),
        "JPEG of 65,500 × 65,500": _with_size(jpeg, 65_500, 65_500),
        "4,096 × 4,097 pixels": make_png((b"IDAT", zeros), size=(4096, 4097)),
        "pixels that are not in the file": make_png((b"IDAT", zlib.compress(b"")), size=(4096, 4096)),
        "1 GB of text": make_png((b"zTXt", text), (b"IDAT", zeros)),
        "1 GB of color profile": make_png((b"iCCP", profile), (b"IDAT", zeros)),
        "100,000 chunks": make_png(*[(b"tEXt", b"a\0b")] * 100_000),
        "a chunk of 2 GB that is not there": make_png()[:33] + b"\x7f\xff\xff\xffIDAT",
        "no size": make_png((b"IDAT", zeros), size=(0, 0)),
    }


@functools.cache
def wrong_files() -> dict[str, bytes]:
    """Returns files that are no PNG or JPEG of 8 bits, or are damaged."""
    pixels = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    good, jpeg = _file(pixels), _file(pixels, "JPEG")
    return {
        **{kind: _file(pixels, kind) for kind in ("GIF", "BMP", "TIFF", "WEBP", "ICO", "PPM")},
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "HTML": b"<html><script>alert(1)</script></html>",
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n",
        "PDF": b"%PDF-1.7\n",
        "empty": b"",
        "random bytes": np.random.default_rng(1).bytes(2**20),
        "16 bits": _file(np.zeros((64, 64), np.uint16)),
        **{f"PNG, cut at {cut}": good[:cut] for cut in (8, 40, len(good) // 2, -30)},
        **{f"JPEG, cut at {cut}": jpeg[:cut] for cut in (4, 200, len(jpeg) // 2)},
        "PNG with a wrong checksum": good[:29] + b"\0\0\0\0" + good[33:],
    }


def _transparent(pixels: np.ndarray) -> bytes:
    alpha = np.zeros((*pixels.shape[:2], 1), np.uint8)
    return _file(np.concatenate([pixels, alpha], -1))


@functools.cache
def wrong_edits() -> list[tuple[dict[str, Any], str]]:
    """Returns edits whose files are right and do not fit, and the field that the answer has to name."""
    pixels = np.full((64, 64, 3), 128, np.uint8)
    image, mask = _base64(_file(pixels)), np.zeros((64, 64), np.uint8)
    mask[:32] = 255
    inpaint = {"kind": "inpaint", "image": image}
    return [
        ({**inpaint}, "edit.mask"),
        ({**inpaint, "mask": _base64(_file(mask[:32]))}, "edit.mask"),
        ({**inpaint, "mask": _base64(_file(mask.repeat(2, 0)))}, "edit.mask"),
        ({**inpaint, "mask": "../../etc/passwd"}, "edit.mask"),
        ({"kind": "image_to_image", "image": _base64(_transparent(pixels))}, "edit.image"),
        ({"kind": "image_to_image", "image": "x" * 16 + "-0.png"}, "edit.image"),
        ({"kind": "image_to_image", "image": "http://127.0.0.1:1/a.png"}, "edit.image"),
        ({"kind": "image_to_image", "image": "file:///etc/passwd"}, "edit.image"),
        ({"kind": "image_to_image"}, "edit.image"),
        ({"kind": "image_to_image", "image": image, "strength": [0.5] * 10_000}, "edit.strength"),
        ({"kind": "image_to_image", "image": image, "strength": 1e308}, "edit.strength"),
        ({"kind": "outpaint", "image": image, "position": [2**31, 0]}, "edit.position"),
        ({"kind": "outpaint", "image": image, "resample": 2**31}, "edit.resample"),
        ({"kind": "upscale", "image": _base64(_file(np.zeros((64, 4000), np.uint8)))}, "edit.image"),
        ({"kind": "edit", "image": image, "source_prompt": "\0"}, "edit.source_prompt"),
        ({"kind": "interpolate", "ends": ["a", 1]}, "edit.ends"),
        ({"kind": "interpolate", "ends": [1, 2**70]}, "edit.ends[1]"),
    ]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _check_sentence(response: httpx.Response, what: str, param: str | None = None) -> None:
    """Raises AssertionError unless an answer is a refusal by one sentence, that names a field if one is given."""
    error = response.json().get("error", {}) if response.status_code in range(400, 500) else {}
    message = error.get("message", "")
    if not (0 < len(message) <= _SENTENCE) or any(part in message for part in ("\n", "Traceback", " at 0x")):
        raise AssertionError(f"{what}: {response.status_code} {response.text[:500]}")
    if param is not None and error.get("param") != param:
        raise AssertionError(f"{what}: the answer names {error.get('param')}, not {param}: {message}")


async def _send_files(server: Server, files: dict[str, bytes]) -> str:
    """Sends files as an image and as a mask, in JSON and in forms; each has to be refused."""
    counts: Counter[Any] = Counter()
    good = _file(np.full((64, 64, 3), 128, np.uint8))
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        for name, data in files.items():
            body = {"prompts": "a ring", "count": 2, "edit": {"kind": "image_to_image", "image": _base64(data)}}
            if data:
                response = await client.post("/v1/jobs", json=body)
                counts[response.status_code] += 1
                _check_sentence(response, name, "edit.image")
            for path, sent, param in (
                ("/v1/images/edits", {"image": data}, "image"),
                ("/v1/images/edits", {"image": good, "mask": data}, "mask"),
                ("/v1/images/variations", {"image": data}, "image"),
            ):
                fields = {"prompt": "a ring"} if path.endswith("edits") else {}
                response = await client.post(
                    path, files={key: ("a.png", one) for key, one in sent.items()}, data=fields
                )
                counts[response.status_code] += 1
                _check_sentence(response, f"{name} as {param} for {path}", param)
    return format_statuses(counts)


async def _bombs(server: Server) -> str:
    return await _send_files(server, bomb_files())


async def _wrong_files(server: Server) -> str:
    return await _send_files(server, wrong_files())


async def _wrong_edits(server: Server) -> str:
    counts: Counter[Any] = Counter()
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        for edit, param in wrong_edits():
            body = {"prompts": "a ring", "count": 2, "edit": edit}
            if "ends" not in edit:
                body["count"] = 1
            response = await client.post("/v1/jobs", json=body)
            counts[response.status_code] += 1
            _check_sentence(response, str(edit)[:200], param)
    return format_statuses(counts)


async def _forms(server: Server) -> str:
    """Sends forms of gigabytes, announced or without end, of many fields, and broken ones."""
    counts: Counter[Any] = Counter()
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    chunk = b"10000\r\n" + b"x" * 2**16 + b"\r\n"
    for path in ("/v1/images/edits", "/v1/images/variations") * 10:
        announced = make_head(server, path, _FORM, f"Content-Length: {4 * 2**30}")
        counts[(await send_raw(server, announced + part))[0]] += 1
        endless = make_head(server, path, _FORM, "Transfer-Encoding: chunked")
        first = f"{len(part):x}\r\n".encode() + part + b"\r\n"
        counts[(await send_raw(server, endless + first, chunks=[chunk] * 16_000))[0]] += 1
    field = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\nx\r\n'
    bodies = [
        b"".join(field % f"f{index}".encode() for index in range(10_000)) + b"--b--\r\n",
        b"".join(part + b"x\r\n" for _ in range(100)) + b"--b--\r\n",
        field % (b"n" * 2**20) + b"--b--\r\n",
        b"--b\r\n" + b"X-Header: y\r\n" * 100_000 + b"\r\nx\r\n--b--\r\n",
        part.replace(b"image", b"../../image") + b"x\r\n--b--\r\n",
        part[:40],
        b"",
        bytes(2**20),
    ]
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        for body in bodies:
            headers = {"content-type": "multipart/form-data; boundary=b"}
            response = await client.post("/v1/images/edits", content=body, headers=headers)
            counts[response.status_code] += 1
            _check_sentence(response, f"a form that begins with {body[:60]!r}")
    return format_statuses(counts)


async def _slow_uploads(server: Server) -> str:
    """Announces images of megabytes, and sends a few bytes a second."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    lasted: list[float] = []

    async def send(index: int) -> None:
        source = f"127.0.0.{2 + index % 50}"
        reader, writer = await asyncio.open_connection(host, int(port), local_addr=(source, 0))
        start = time.monotonic()
        writer.write(make_head(server, "/v1/images/edits", _FORM, f"Content-Length: {2**23}"))
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - start < _SLOW_SECONDS:
                writer.write(b"x" * 10)
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1), 1)
                    break
        lasted.append(time.monotonic() - start)
        writer.close()

    await asyncio.gather(*(send(index) for index in range(_SLOW_CLIENTS)))
    if max(lasted) >= _SLOW_SECONDS:
        raise AssertionError(f"a slow upload was open for {max(lasted):.0f} s")
    return f"closed after {min(lasted):.0f} to {max(lasted):.0f} s"


ATTACKS = {
    "images to edit: bombs": _bombs,
    "images to edit: wrong types, damaged, 16 bits": _wrong_files,
    "images to edit: files that do not fit": _wrong_edits,
    "images to edit: forms of 4 GB, without end, broken": _forms,
    f"images to edit: {_SLOW_CLIENTS} clients that send 10 bytes a second": _slow_uploads,
}
