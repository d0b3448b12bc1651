import dataclasses
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data.record import CorruptRecordError
from imagen_jax.data.transforms import _EXIF_TRANSPOSE, Transform, read_size
from imagen_jax.errors import missing_extra_error
from imagen_jax.images import formats
from tests.helpers import profiles
from tests.helpers.memory import rise_of_memory

# PIL's warnings about unusual files are irrelevant here: they are decoded or corrupt
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

TO_8 = Transform((8, 8), 3, 8, crop="center", flip=False, background=255, upscale=False, max_pixels=10**6)


def to(**changes):
    return dataclasses.replace(TO_8, **changes)


def file_of(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def gradient(height, width, channels=3):
    """Returns a smooth image that differs in every corner and channel."""
    rows, columns = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    mix = np.linspace(0.2, 0.8, channels)
    return np.round(255 * (mix * rows + (1 - mix) * columns)).astype(np.uint8)


def decoded(image, transform=TO_8, kind="PNG", **options):
    return transform.decode(file_of(image, kind, **options), "it")


def assert_near(result, expected, tolerance=1):
    np.testing.assert_allclose(result.astype(float), np.asarray(expected, float), atol=tolerance)


@pytest.mark.parametrize("kind, loss", [("PNG", 0), ("WEBP", 0), ("BMP", 0), ("TIFF", 0), ("JPEG", 3)])
def test_image_of_target_size_is_unchanged(kind, loss):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    photo = gradient(8, 8)
    result = decoded(Image.fromarray(photo), kind=kind, **options)
    assert (result.shape, result.dtype) == ((8, 8, 3), np.uint8)
    assert_near(result, photo, loss)


def test_resize_does_not_alias():
    """Stripes finer than the new pixels turn gray; every second pixel alone would stay black or white."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert_near(decoded(Image.fromarray(stripes)), np.full((8, 8, 3), 127.5), 5)


def test_jpeg_draft_decoding():
    photo = Image.fromarray(gradient(256, 512))
    data = file_of(photo, "JPEG", quality=95)
    whole = np.asarray(Image.open(io.BytesIO(data)).resize((16, 8), Image.Resampling.BICUBIC))
    assert_near(TO_8.decode(data, "it"), whole, 2)


@pytest.mark.parametrize(
    "before, after", [((16, 16), (8, 8)), ((20, 40), (8, 16)), ((41, 20), (16, 8)), ((8, 9), (8, 9))]
)
def test_decode_keeps_aspect(before, after):
    result = decoded(Image.fromarray(gradient(*before)))
    assert result.shape == (*after, 3)
    assert TO_8.fit(result).shape == (8, 8, 3)


def test_center_and_random_crop():
    photo = np.arange(8 * 20 * 3, dtype=np.uint8).reshape(8, 20, 3)
    middle = photo[:, 6:14]
    random, rng = to(crop="random"), np.random.default_rng(0)
    np.testing.assert_array_equal(TO_8.fit(photo, rng), middle)
    np.testing.assert_array_equal(random.fit(photo), middle)
    offsets = {random.fit(photo, rng)[0, 0, 0] // 3 for _ in range(300)}
    assert offsets == set(range(13))


def test_flip_mirrors_half():
    photo, rng = gradient(8, 8), np.random.default_rng(0)
    assert all((TO_8.fit(photo, rng) == photo).all() for _ in range(50))
    flipping = to(flip=True)
    assert (flipping.fit(photo) == photo).all()
    mirrored = [(flipping.fit(photo, rng) == photo[:, ::-1]).all() for _ in range(200)]
    assert 70 < sum(mirrored) < 130


def test_wide_size_is_covered():
    transform = to(size=(8, 24))
    assert transform.fit(decoded(Image.fromarray(gradient(32, 64)), transform)).shape == (8, 24, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation, kind):
    upright = Image.fromarray(gradient(16, 32))
    undo = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
    stored = upright.transpose(_EXIF_TRANSPOSE[undo[orientation]]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = decoded(stored, kind=kind, exif=exif.tobytes() if kind != "TIFF" else exif)
    assert result.shape == (8, 16, 3)
    assert_near(result, decoded(upright), 8)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"rubbish"]
)
def test_unreadable_exif_is_ignored(exif):
    photo = gradient(8, 8)
    assert_near(decoded(Image.fromarray(photo), exif=exif), photo, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_in_damaged_exif(kind):
    """An entry that is intact counts, whatever follows it."""
    exif = Image.Exif()
    exif[0x0112], exif[0x8298] = 6, "long" * 100
    stored = Image.fromarray(gradient(8, 16))
    assert decoded(stored, kind=kind, exif=exif.tobytes()[:-300]).shape == (16, 8, 3)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_invalid_orientation_is_ignored(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_near(decoded(Image.fromarray(gradient(8, 8)), exif=exif.tobytes()), gradient(8, 8), 0)


def half_clear():
    photo = np.zeros((8, 8, 4), np.uint8)
    photo[:, :4] = (200, 100, 0, 255)
    return photo


@pytest.mark.parametrize("background", [255, 0, (10, 20, 30)])
def test_alpha_is_composited(background):
    result = decoded(Image.fromarray(half_clear()), to(background=background))
    expected = np.empty((8, 8, 3))
    expected[:, :4], expected[:, 4:] = (200, 100, 0), background
    assert_near(result, expected, 0)


def test_transparent_pixels_do_not_bleed():
    """The green of a fully transparent pixel has no effect."""
    photo = np.zeros((64, 64, 4), np.uint8)
    photo[:, ::2], photo[:, 1::2] = (255, 0, 0, 255), (0, 255, 0, 0)
    red, green, blue = (decoded(Image.fromarray(photo), to(background=0))[..., i].astype(int) for i in range(3))
    assert (red > 100).all()
    assert (green <= 1).all()
    assert (blue <= 1).all()


def test_alpha_is_kept_for_rgba_stages():
    result = decoded(Image.fromarray(half_clear()), to(channels=4))
    np.testing.assert_array_equal(result, half_clear())
    assert (decoded(Image.fromarray(gradient(8, 8)), to(channels=4))[..., 3] == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("bits", [8, 16])
def test_every_pil_mode_is_converted(mode, channels, bits):
    """White stays white in every encoding."""
    white = Image.new("I;16", (16, 16), 65535) if mode == "I;16" else Image.new("RGB", (16, 16), "white").convert(mode)
    kind = "TIFF" if mode in ("CMYK", "YCbCr", "LA", "PA") else "PNG"
    result = decoded(white, to(channels=channels, bits=bits), kind)
    assert result.shape == (8, 8, channels)
    assert (result == 2**bits - 1).all()


def test_cmyk_jpeg_colors():
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert_near(decoded(red, kind="JPEG"), np.broadcast_to([255, 0, 0], (8, 8, 3)), 3)


@pytest.mark.parametrize("transparency", [0, b"\0\xff"])
def test_palette_transparency(transparency):
    photo = Image.fromarray(np.repeat([[0] * 4 + [1] * 4], 8, 0).astype(np.uint8), "P")
    photo.putpalette([255, 0, 0, 0, 0, 255])
    result = decoded(photo, to(background=128), transparency=transparency)
    assert_near(result[:, :4], np.full((8, 4, 3), 128), 0)
    assert_near(result[:, 4:], np.broadcast_to([0, 0, 255], (8, 4, 3)), 0)


@pytest.mark.parametrize("mode, clear", [("L", 7), ("RGB", (7, 7, 7))])
def test_color_key_transparency(mode, clear):
    result = decoded(Image.new(mode, (8, 8), clear), to(background=128), transparency=clear)
    assert_near(result, np.full((8, 8, 3), 128), 0)


def test_16_bit_gray_keeps_precision():
    levels = (np.arange(64, dtype=np.uint16) * 1021).reshape(8, 8)
    image = Image.fromarray(levels)
    np.testing.assert_array_equal(decoded(image, to(bits=16, channels=1))[..., 0], levels)
    np.testing.assert_array_equal(decoded(image)[..., 1], np.round(levels / 257))


def png(*chunks):
    """Returns a PNG file with chunks (name, content)."""
    parts = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_of(width, height, depth, colour, pixels):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return png((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))


def test_16_bit_color_is_corrupt_for_16_bit_stages():
    data = png_of(8, 8, 16, 2, (b"\0" + b"\x80\x00" * 24) * 8)
    assert (TO_8.decode(data, "it") == 128).all()
    with pytest.raises(CorruptRecordError, match="it: its colors have 16 bits, .* config.data.bits"):
        to(bits=16).decode(data, "it")


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_pixels_are_corrupt(mode):
    with pytest.raises(CorruptRecordError, match=rf"32 bits \(mode {mode}\)"):
        decoded(Image.new(mode, (8, 8), 1), kind="TIFF")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animation_gives_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    result = decoded(frames[0], kind=kind, save_all=True, append_images=frames[1:])
    assert_near(result, np.broadcast_to([255, 0, 0], (8, 8, 3)), 3)


def test_upscale_is_optional():
    image = Image.fromarray(gradient(7, 30))
    with pytest.raises(CorruptRecordError, match="it: 7×30 is smaller than 8×8: data.transform.upscale enlarges"):
        decoded(image)
    assert decoded(image, to(upscale=True)).shape == (8, 34, 3)
    assert (decoded(Image.new("RGB", (1, 1), "white"), to(upscale=True)) == 255).all()


def test_extreme_aspect_is_corrupt():
    with pytest.raises(CorruptRecordError, match="1×60000"):
        decoded(Image.new("RGB", (60000, 1)), to(upscale=True))


def gif_bomb():
    """Returns a GIF with a frame far larger than the screen in its header."""
    image = struct.pack("<BHHHHB", 0x2C, 0, 0, 60000, 60000, 0) + b"\x02\x02\x4c\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + image + b";"


def tiff_bomb():
    """Returns a TIFF with a small image in a single huge tile."""
    tags = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: 32768, 323: 32768, 324: 8, 325: 4}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 12) + b"\0\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


BOMBS = {
    "png": png_of(30000, 30000, 8, 2, bytes(10**6)),
    "png of one row": png_of(2**31 - 1, 1, 1, 0, bytes(10)),
    "png profile": png(
        (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)), (b"iCCP", b"x\0\0" + zlib.compress(bytes(10**8)))
    ),
    "gif": gif_bomb(),
    "tiff": tiff_bomb(),
    "webp": b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f" + struct.pack("<I", 16382 | 16382 << 14) + bytes(9),
    "bmp": b"BM"
    + struct.pack("<IHHI", 54, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, 40000, 40000, 1, 24, 0, 0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_decompression_bombs_are_corrupt(bomb):
    def refused():
        with pytest.raises(CorruptRecordError, match="^bomb: "):
            TO_8.decode(bomb, "bomb")

    assert rise_of_memory(refused) < 20e6


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
def test_metadata_bombs_are_ignored(name):
    """The pixels beside them are sound."""
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    pixels = (b"IDAT", zlib.compress((b"\0" + b"\x80" * 8) * 8))
    data = png((b"IHDR", header), (name, b"x\0\0" + zlib.compress(bytes(5 * 10**7))), pixels, (b"IEND", b""))
    assert rise_of_memory(lambda: TO_8.decode(data, "bomb")) < 20e6
    assert (TO_8.decode(data, "bomb") == 128).all()


def test_max_pixels_bounds_memory():
    data = file_of(Image.new("LA", (2000, 2000), (1, 2)))
    assert 16e6 < rise_of_memory(lambda: to(max_pixels=4 * 10**6).decode(data, "large")) < 12 * 4e6 + 10e6


WHOLE = {
    kind: file_of(Image.fromarray(gradient(24, 40)), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
}


@pytest.mark.parametrize("kind", WHOLE)
def test_truncated_files_are_corrupt(kind):
    for length in range(0, len(WHOLE[kind]) * 2 // 3, max(1, len(WHOLE[kind]) // 25)):
        with pytest.raises(CorruptRecordError, match="^cut: .+"):
            TO_8.decode(WHOLE[kind][:length], "cut")


@pytest.mark.parametrize("kind", WHOLE)
def test_damaged_files_decode_or_are_corrupt(kind):
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(150):
        data = bytearray(WHOLE[kind])
        for place in rng.integers(len(data), size=rng.integers(1, 8)):
            data[place] = rng.integers(256)
        try:
            result = TO_8.fit(TO_8.decode(bytes(data), "damaged"))
        except CorruptRecordError as broken:
            outcomes.add("broken")
            assert broken.name == "damaged"
            assert broken.reason.isprintable()
        else:
            outcomes.add("read")
            assert (result.shape, result.dtype) == ((8, 8, 3), np.uint8)
    assert outcomes == {"broken", "read"}


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "the file is empty"),
        (b"<html>not found</html>", "not an image in any of JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),  # which PIL would hand to Ghostscript
        (b"\x89PNG\r\n\x1a\n", ".+"),
    ],
)
def test_non_images_are_corrupt(data, reason):
    with pytest.raises(CorruptRecordError, match=f"^it: {reason}"):
        TO_8.decode(data, "it")


def heic_of(image, **options):
    out = io.BytesIO()
    pytest.importorskip("pillow_heif").from_pillow(image).save(out, **{"quality": 100, "chroma": 444, **options})
    return out.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_turned_once(orientation):
    """The container turns the image, and EXIF says so a second time."""
    photo, exif = Image.fromarray(gradient(32, 64)), Image.Exif()
    exif[0x0112] = orientation
    result = TO_8.decode(heic_of(photo, exif=exif.tobytes()), "it")
    assert_near(result, decoded(photo, exif=exif.tobytes()), 4)
    assert read_size(heic_of(photo, exif=exif.tobytes()), "it") == ((64, 32) if orientation > 4 else (32, 64))


def test_heic_of_10_bits():
    heif = pytest.importorskip("pillow_heif")
    photo, out = gradient(16, 16), io.BytesIO()
    heif.from_bytes("RGB;16", (16, 16), (photo.astype(np.uint16) * 257).tobytes()).save(out, quality=100, chroma=444)
    assert_near(TO_8.decode(out.getvalue(), "it"), decoded(Image.fromarray(photo)), 4)
    with pytest.raises(CorruptRecordError, match="10 bits.* config.data.bits"):
        to(bits=16).decode(out.getvalue(), "it")


def test_heic_profile_is_converted():
    photo = Image.new("RGB", (16, 16), (200, 80, 60))
    profile = profiles.rgb_profile(profiles.P3_XY, profiles.parametric_srgb())
    expected = profiles.expected_srgb((200, 80, 60), profiles.P3_XY, profiles.srgb_decode)
    assert_near(TO_8.decode(heic_of(photo, icc_profile=profile), "it"), np.broadcast_to(expected, (8, 8, 3)), 4)


def test_heic_alpha_is_composited():
    assert_near(TO_8.decode(heic_of(Image.new("RGBA", (16, 16), (9, 9, 9, 0))), "it"), np.full((8, 8, 3), 255), 2)


def test_heic_bombs_are_corrupt():
    """One that says its size, and one that lies about it."""
    data = heic_of(Image.new("RGB", (1024, 1024)), quality=1)
    size = struct.pack(">II", 1024, 1024)
    for bomb in (data, data.replace(size, struct.pack(">II", 64, 64))):

        def refused(bomb=bomb):
            with pytest.raises(CorruptRecordError, match="^bomb: "):
                TO_8.decode(bomb, "bomb")

        assert size in data
        assert rise_of_memory(refused) < 10e6


def test_damaged_heic_decodes_or_is_corrupt():
    data, rng, outcomes = heic_of(Image.fromarray(gradient(24, 40))), np.random.default_rng(0), set()
    for _ in range(60):
        damaged = bytearray(data)
        for place in rng.integers(len(data), size=3):
            damaged[place] = rng.integers(256)
        try:
            assert TO_8.fit(TO_8.decode(bytes(damaged), "damaged")).shape == (8, 8, 3)
            outcomes.add("read")
        except CorruptRecordError as broken:
            outcomes.add("broken")
            assert broken.name == "damaged"
    assert outcomes == {"broken", "read"}
    for length in range(0, len(data) - 1, 100):
        with pytest.raises(CorruptRecordError, match="^cut: "):
            TO_8.decode(data[:length], "cut")


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
def test_heic_without_its_package(monkeypatch, brand):
    def register():
        raise missing_extra_error("pillow_heif", "data")

    monkeypatch.setattr(formats, "register_heif", register)
    with pytest.raises(CorruptRecordError, match=r"^it: a HEIC image.*pip install 'imagen_jax\[data\]'"):
        TO_8.decode(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(100), "it")
