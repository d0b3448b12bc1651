"""PNG encoder (W3C, Portable Network Graphics) for 8 and 16 bits per channel; Pillow writes 16 bits of gray only."""

from __future__ import annotations

import struct
import zlib

import numpy as np

_COLOR_TYPES = {1: 0, 3: 2, 4: 6}  # by number of channels: gray, RGB, RGBA


def encode(image: np.ndarray) -> bytes:
    """Returns an image, uint8 or uint16 [H, W, C] with C = 1, 3 or 4, as the bytes of a PNG file."""
    height, width, channels = image.shape
    header = struct.pack(">IIBBBBB", width, height, image.itemsize * 8, _COLOR_TYPES[channels], 0, 0, 0)
    # each row begins with its filter type, 0 for none; samples are big-endian
    rows = image.astype(image.dtype.newbyteorder(">")).reshape(height, -1).view(np.uint8)
    data = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, (b"IHDR", b"IDAT", b"IEND"), (header, data, b"")))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
