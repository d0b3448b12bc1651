"""PNG files (W3C, Portable Network Graphics): an encoder for 8 and 16 bits per channel, and texts within files.

Pillow writes 16 bits of gray only, and reads texts only with the limits of its own.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

MAX_TEXT_BYTES = 2**20  # of one text; Pillow refuses to open files with longer ones
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPES = {1: 0, 3: 2, 4: 6}  # by number of channels: gray, RGB, RGBA
_HEADER_END = len(_SIGNATURE) + 25  # of IHDR, which is the first chunk of every file
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
_MAX_KEYWORD_BYTES = 79


def encode(image: np.ndarray) -> bytes:
    """Returns an image, uint8 or uint16 [H, W, C] with C = 1, 3 or 4, as the bytes of a PNG file."""
    height, width, channels = image.shape
    header = struct.pack(">IIBBBBB", width, height, image.itemsize * 8, _COLOR_TYPES[channels], 0, 0, 0)
    # each row begins with its filter type, 0 for none; samples are big-endian
    rows = image.astype(image.dtype.newbyteorder(">")).reshape(height, -1).view(np.uint8)
    data = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())
    return _SIGNATURE + b"".join(map(_chunk, (b"IHDR", b"IDAT", b"IEND"), (header, data, b"")))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_texts(file: bytes, texts: Mapping[str, str]) -> bytes:
    """Returns the bytes of a PNG file with texts before its pixels, as chunks of UTF-8 (iTXt).

    Args:
        file: the bytes of a PNG file.
        texts: by keyword, which has 1 to 79 Latin letters.
    """
    chunks = [_chunk(b"iTXt", key.encode("latin-1") + b"\0\0\0\0\0" + text.encode()) for key, text in texts.items()]
    return file[:_HEADER_END] + b"".join(chunks) + file[_HEADER_END:]


def read_text(file: BinaryIO, keyword: str) -> str | None:
    """Returns the text of a PNG file with a keyword, wherever in the file and in whichever kind of chunk it is.

    Pixels are skipped, so that memory is bounded for any input.

    Args:
        file: an open file that can seek.
        keyword: of the text.

    Returns:
        The text, or None if the file has none with this keyword.

    Raises:
        ValueError: the file is not a PNG, is truncated, or the text is damaged or longer than `MAX_TEXT_BYTES`.
    """
    if file.read(len(_SIGNATURE)) != _SIGNATURE:
        raise ValueError("it is not a PNG file")
    start = keyword.encode("latin-1") + b"\0"
    while True:
        header = file.read(8)
        if len(header) < 8:
            raise ValueError("it is truncated")
        length, kind = int.from_bytes(header[:4], "big"), header[4:]
        if kind == b"IEND":
            return None
        data = file.read(min(length, MAX_TEXT_BYTES + _MAX_KEYWORD_BYTES)) if kind in _TEXT_CHUNKS else b""
        if not data.startswith(start):
            file.seek(length - len(data) + 4, 1)
            continue
        if len(data) < length:
            raise ValueError(f"its text {keyword!r} is longer than {MAX_TEXT_BYTES:,} bytes, or truncated")
        if file.read(4) != struct.pack(">I", zlib.crc32(kind + data)):
            raise ValueError(f"its text {keyword!r} is damaged: the checksum differs")
        return _decode_text(kind, data[len(start) :], keyword)


def _decode_text(kind: bytes, data: bytes, keyword: str) -> str:
    """Returns the text of a chunk whose keyword is cut off. Raises ValueError."""
    compressed = kind == b"zTXt"
    if kind == b"zTXt":
        data = data[1:]  # after the method
    elif kind == b"iTXt":
        compressed = data[:1] == b"\1"
        # after flag and method: the language, the translated keyword, the text
        data = b"".join(data[2:].split(b"\0", 2)[2:])
    if compressed:
        try:
            data = zlib.decompressobj().decompress(data, MAX_TEXT_BYTES + 1)
        except zlib.error as error:
            raise ValueError(f"its text {keyword!r} is damaged: {error}") from error
    if len(data) > MAX_TEXT_BYTES:
        raise ValueError(f"its text {keyword!r} is longer than {MAX_TEXT_BYTES:,} bytes")
    return data.decode("utf-8" if kind == b"iTXt" else "latin-1")
