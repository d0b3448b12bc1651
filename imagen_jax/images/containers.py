"""Takes image files apart: the parts that are decoded, and the metadata that change how the image looks.

Text, XMP, thumbnails and notes of programs never reach a decoder: they may be long, damaged, or expand to gigabytes,
beside sound pixels. The EXIF block and the color profile are kept apart, bounded, for the caller to read or to ignore.
PNG: W3C PNG Third Edition; JPEG: ITU-T T.81, ICC.1:2022 Annex B.4; WebP: RFC 9649.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

MAX_PROFILE_BYTES = 2**23  # profiles of printers take up to 5 MB; a longer one is taken as damaged

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_COLOR_CHUNKS = (b"cICP", b"sRGB", b"gAMA", b"cHRM")
_JPEG_START, _EXIF_HEADER, _ICC_HEADER = b"\xff\xd8", b"Exif\0\0", b"ICC_PROFILE\0"
_JPEG_APP0, _JPEG_APP1, _JPEG_APP2, _JPEG_APP15, _JPEG_COMMENT = 0xE0, 0xE1, 0xE2, 0xEF, 0xFE
_JPEG_COLOR_NOTES = {0xE0: 14, 0xEE: 12}  # JFIF and Adobe say how colors are stored; libjpeg ignores shorter ones
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9
_JPEG_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))
_WEBP_PIXELS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
_WEBP_METADATA_FLAGS = 0x20 | 0x08 | 0x04  # of VP8X: ICC profile, EXIF, XMP


class ImageParts(NamedTuple):
    """An image file taken apart.

    Attributes:
        pixels: an image file of the same format without metadata.
        exif: the EXIF block, empty if there is none.
        profile: the ICC profile, empty if there is none, or it is damaged or too long.
        colors: the chunks of a PNG that describe its color space without a profile, by name.
    """

    pixels: bytes
    exif: bytes = b""
    profile: bytes = b""
    colors: Mapping[bytes, bytes] = MappingProxyType({})


def take_apart(data: bytes) -> ImageParts:
    """Returns the parts of a PNG, JPEG or WebP file; of any other file, all of it as `pixels`.

    Damage within the metadata removes them; the parts that are decoded are passed on as they are, damaged or not.
    """
    if data.startswith(_PNG_SIGNATURE):
        return _take_png_apart(data)
    if data.startswith(_JPEG_START):
        return _take_jpeg_apart(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _take_webp_apart(data)
    return ImageParts(data)


def _take_png_apart(data: bytes) -> ImageParts:
    """Keeps the critical chunks, and tRNS: no other chunk changes the pixels of the first frame."""
    view, kept = memoryview(data), list[bytes | memoryview]([_PNG_SIGNATURE])
    metadata: dict[bytes, bytes] = {}
    for name, start, end in _png_chunks(data):
        is_critical = not name[0] & 0x20  # the case of its first letter; IDAT is one of them
        if is_critical or name == b"tRNS":
            kept.append(view[start:end])
        elif name in (b"eXIf", b"iCCP", *_PNG_COLOR_CHUNKS) and name not in metadata:
            body, checksum = data[start + 8 : end - 4], data[end - 4 : end]
            if zlib.crc32(name + body).to_bytes(4, "big") == checksum:
                metadata[name] = body
    profile = _png_profile(metadata.get(b"iCCP", b""))
    colors = {name: metadata[name] for name in _PNG_COLOR_CHUNKS if name in metadata}
    return ImageParts(b"".join(kept), metadata.get(b"eXIf", b""), profile, colors)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields (name, start, end) of the chunks; a cut one ends at the end of the file."""
    start = len(_PNG_SIGNATURE)
    while start < len(data):
        name = data[start + 4 : start + 8]
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        yield name or b"\0", start, min(end, len(data))
        if name == b"IEND":
            return
        start = end


def _png_profile(body: bytes) -> bytes:
    """Returns the profile in an iCCP chunk: a name, NUL, the compression method 0, and the compressed profile."""
    _, _, rest = body.partition(b"\0")
    if rest[:1] != b"\0":
        return b""
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(rest[1:], MAX_PROFILE_BYTES)
    except zlib.error:
        return b""
    return profile if inflate.eof else b""


def _take_jpeg_apart(data: bytes) -> ImageParts:
    """Keeps all segments but comments and those of applications, other than JFIF's and Adobe's."""
    view, kept = memoryview(data), list[bytes | memoryview]([_JPEG_START])
    exif, profile_parts = list[bytes](), list[bytes]()
    position = len(_JPEG_START)
    for marker, start, end in _jpeg_segments(data):
        body = data[start + 4 : end]
        if marker == _JPEG_APP1 and body.startswith(_EXIF_HEADER):
            exif.append(body[len(_EXIF_HEADER) :])
        elif marker == _JPEG_APP2 and body.startswith(_ICC_HEADER):
            profile_parts.append(body[len(_ICC_HEADER) :])
        elif len(body) >= _JPEG_COLOR_NOTES.get(marker, 0 if _is_jpeg_code(marker) else len(data)):
            kept.append(view[start:end])
        position = end
    return ImageParts(b"".join([*kept, view[position:]]), b"".join(exif), _jpeg_profile(profile_parts))


def _is_jpeg_code(marker: int) -> bool:
    """Returns whether a segment is for decoders, and not for applications or readers."""
    return not _JPEG_APP0 <= marker <= _JPEG_APP15 and marker != _JPEG_COMMENT


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields (marker, start, end) of the segments before the first scan; stops where they are damaged or cut."""
    position = len(_JPEG_START)
    while True:
        start = data.find(b"\xff", position)  # decoders skip bytes between segments
        while start >= 0 and data[start + 1 : start + 2] in (b"\xff", b"\0"):
            start = data.find(b"\xff", start + 1)
        if start < 0 or start + 4 > len(data):
            return
        marker = data[start + 1]
        if marker in _JPEG_WITHOUT_LENGTH:
            end = start + 2
        else:
            end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if marker in (_JPEG_SCAN, _JPEG_END) or end > len(data):
            return
        yield marker, start, end
        position = end


def _jpeg_profile(parts: list[bytes]) -> bytes:
    """Returns the profile of segments that begin with their number, from 1, and how many there are."""
    by_number = {part[0]: part[2:] for part in parts if len(part) > 2 and part[1] == parts[0][1]}
    if not parts or len(parts[0]) < 2 or sorted(by_number) != list(range(1, parts[0][1] + 1)):
        return b""
    profile = b"".join(by_number[number] for number in sorted(by_number))
    return profile if len(profile) <= MAX_PROFILE_BYTES else b""


def _take_webp_apart(data: bytes) -> ImageParts:
    """Keeps the chunks of pixels, and says in the header that there are no others."""
    view, kept = memoryview(data), list[bytes | memoryview]()
    metadata: dict[bytes, bytes] = {}
    start = 12
    while start + 8 <= len(data):
        name, size = data[start : start + 4], int.from_bytes(data[start + 4 : start + 8], "little")
        end = start + 8 + size + size % 2
        if name == b"VP8X" and size:
            flags = data[start + 8] & ~_WEBP_METADATA_FLAGS
            kept.append(data[start : start + 8] + bytes([flags]) + data[start + 9 : end])
        elif name in _WEBP_PIXELS:
            kept.append(view[start:end])
        elif start + 8 + size <= len(data):
            metadata.setdefault(name, data[start + 8 : start + 8 + size])
        start = end
    pixels = b"".join(kept)
    pixels += bytes(len(pixels) % 2)
    profile = metadata.get(b"ICCP", b"")
    return ImageParts(
        b"RIFF" + struct.pack("<I", 4 + len(pixels)) + b"WEBP" + pixels,
        metadata.get(b"EXIF", b""),
        profile if len(profile) <= MAX_PROFILE_BYTES else b"",
    )
