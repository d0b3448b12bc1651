"""Metadata neither make sound pixels unreadable nor hide damaged ones."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from imagen_jax.images.containers import MAX_PROFILE_BYTES, take_apart

EXIF = Image.Exif().tobytes()
LONG = np.random.default_rng(0).integers(32, 127, 2 * 10**6, dtype=np.uint8).tobytes()
PICTURE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 24, 3), dtype=np.uint8))


def file_of(kind, **options):
    out = io.BytesIO()
    PICTURE.save(out, kind, **options)
    return out.getvalue()


def chunk(name, body, checksum=None):
    checksum = zlib.crc32(name + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)


def png(*chunks, after=b""):
    """A PNG with chunks before and after its pixels."""
    plain = file_of("PNG")
    return plain[:33] + b"".join(chunks) + plain[33:-12] + after + plain[-12:]


def jpeg(*segments):
    plain = file_of("JPEG")
    return plain[:2] + b"".join(bytes([0xFF, m]) + struct.pack(">H", len(b) + 2) + b for m, b in segments) + plain[2:]


def opens_as(data, expected):
    """Whether what is decoded of a file gives the pixels of another."""
    with Image.open(io.BytesIO(take_apart(data).pixels)) as image, Image.open(io.BytesIO(expected)) as other:
        return np.array_equal(np.asarray(image), np.asarray(other))


PNGS = {
    "long text": png(chunk(b"tEXt", b"workflow\0" + LONG * 3)),
    "long text after the pixels": png(after=chunk(b"zTXt", b"w\0\0" + zlib.compress(LONG))),
    "long compressed text": png(chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LONG))),
    "long XMP": png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LONG))),
    "much text": png(*[chunk(b"zTXt", b"%d\0\0" % i + zlib.compress(bytes(10**6))) for i in range(70)]),
    "text that expands": png(chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(10**8)))),
    "unknown compression": png(chunk(b"zTXt", b"x\0\7")),
    "text under a decoder's name": png(chunk(b"tEXt", b"transparency\0abc")),
    "short gamma": png(chunk(b"gAMA", b"\0")),
    "short resolution": png(chunk(b"pHYs", b"\0")),
    "broken animation": png(chunk(b"acTL", b"\0")),
    "wrong checksum of text": png(chunk(b"tEXt", b"a\0b", checksum=7)),
    "wrong checksum of the profile": png(chunk(b"iCCP", b"x\0\0" + zlib.compress(LONG), checksum=7)),
    "cut in text after the pixels": png(after=chunk(b"tEXt", b"a\0" + LONG))[:-100_000],
}


@pytest.mark.parametrize("data", PNGS.values(), ids=PNGS)
def test_png(data):
    assert opens_as(data, file_of("PNG"))
    assert len(take_apart(data).pixels) <= len(file_of("PNG"))


def test_png_transparency_and_animations():
    palette = PICTURE.quantize(8)
    out = io.BytesIO()
    palette.save(out, "PNG", transparency=bytes([0, 100, 200]))
    assert take_apart(out.getvalue()).pixels == out.getvalue()
    animated = file_of("PNG", save_all=True, append_images=[PICTURE.rotate(180)])
    assert opens_as(animated, file_of("PNG"))


@pytest.mark.parametrize("body, expected", [(LONG[:500_000],) * 2, (b"", b""), (bytes(MAX_PROFILE_BYTES + 1), b"")])
def test_png_profile(body, expected):
    compressed = zlib.compress(body)
    assert take_apart(png(chunk(b"iCCP", b"name\0\0" + compressed))).profile == expected
    assert take_apart(png(chunk(b"iCCP", b"name\0\0" + compressed[: len(compressed) // 2]))).profile == b""


def icc_segments(profile, numbers=None, count=None):
    parts = [profile[i : i + 60000] for i in range(0, len(profile), 60000)]
    numbers = range(1, len(parts) + 1) if numbers is None else numbers
    return [(0xE2, b"ICC_PROFILE\0" + bytes([n, count or len(parts)]) + parts[n - 1]) for n in numbers]


@pytest.mark.parametrize(
    "numbers, is_complete", [((1, 2, 3), True), ((3, 1, 2), True), ((1, 3), False), ((1, 2, 3, 3), True)]
)
def test_jpeg_profile_in_segments(numbers, is_complete):
    parts = take_apart(jpeg(*icc_segments(LONG[:150_000], numbers, count=3)))
    assert parts.profile == (LONG[:150_000] if is_complete else b"")
    assert parts.pixels == file_of("JPEG")


JPEGS = {
    "XMP in many segments": [(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + LONG[:60000])] * 40,
    "long EXIF": [(0xE1, EXIF + LONG[:65000])],
    "cut EXIF": [(0xE1, EXIF[:9])],
    "no profile in its segment": [(0xE2, b"ICC_PROFILE\0")],
    "cut notes of Photoshop": [(0xED, b"Photoshop 3.0\x008BIM\3\xed")],
    "wrong list of pictures": [(0xE2, b"MPF\0II*\0\xff\xff\xff\xff")],
    "cut JFIF": [(0xE0, b"JFIF")],
    "cut note of Adobe": [(0xEE, b"Adobe")],
    "comment": [(0xFE, LONG[:65000])],
}


@pytest.mark.parametrize("segments", JPEGS.values(), ids=JPEGS)
def test_jpeg(segments):
    assert take_apart(jpeg(*segments)).pixels == file_of("JPEG")


@pytest.mark.parametrize("mode", ["CMYK", "RGB", "L"])
def test_jpeg_keeps_what_colors_mean(mode):
    out = io.BytesIO()
    PICTURE.convert(mode).save(out, "JPEG", keep_rgb=mode == "RGB", comment=b"hello")
    assert opens_as(out.getvalue(), out.getvalue())


def webp(**options):
    return file_of("WEBP", lossless=True, **options)


def test_webp():
    data = webp(exif=EXIF, icc_profile=LONG[:300_000], xmp=LONG)
    parts = take_apart(data)
    assert EXIF.endswith(parts.exif)
    assert len(parts.exif) > 6
    assert parts.profile == LONG[:300_000]
    assert len(parts.pixels) < len(webp()) + 100
    for whole in (data, data[: -(10**6)], data[:4] + struct.pack("<I", len(data) + 999) + data[8:], data + b"abc"):
        assert opens_as(whole, webp())


@pytest.mark.parametrize("kind, options", [("PNG", {}), ("JPEG", {}), ("WEBP", {"lossless": True})])
def test_damaged_pixels_stay_damaged(kind, options):
    data = file_of(kind, **options)
    for cut in (len(data) // 2, len(data) - 30):
        with pytest.raises((OSError, SyntaxError)), Image.open(io.BytesIO(take_apart(data[:cut]).pixels)) as image:
            image.load()


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "AVIF"])
def test_other_formats_are_passed_on(kind):
    data = file_of(kind)
    assert take_apart(data).pixels is data
    assert take_apart(b"").pixels == b""
