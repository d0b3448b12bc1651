"""Color spaces that a file names without a profile; expected colors come from their matrices."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data.transforms import Transform
from imagen_jax.images.color_space import code_point_profile
from tests.helpers import profiles

TRANSFORM = Transform((32, 32), 3, 8, crop="center", flip=False, background=0, upscale=False, max_pixels=10**6)
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
P3 = profiles.expected_srgb(PIXELS, profiles.P3_XY, profiles.srgb_decode)


def decoded(*chunks, **options):
    """The image of a PNG with more chunks (name, body)."""
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, "PNG", **options)
    more = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return TRANSFORM.decode(out.getvalue()[:33] + more + out.getvalue()[33:], "it")


def chromaticities(primaries, white=profiles.D65_XY):
    return b"cHRM", struct.pack(">8I", *(round(number * 100_000) for point in (white, *primaries) for number in point))


def gamma(value):
    return b"gAMA", struct.pack(">I", value)


def test_code_points_of_png():
    np.testing.assert_allclose(decoded((b"cICP", bytes([12, 13, 0, 1]))), P3, atol=2)


def test_code_points_win_over_a_profile_and_a_profile_over_gamma():
    p3, adobe = (profiles.rgb_profile(*space) for space in ((profiles.P3_XY, profiles.parametric_srgb()),
                                                            (profiles.ADOBE_XY, profiles.gamma(2.2))))  # fmt: skip
    np.testing.assert_allclose(decoded((b"cICP", bytes([12, 13, 0, 1])), icc_profile=adobe), P3, atol=2)
    np.testing.assert_array_equal(decoded((b"cICP", bytes([1, 13, 0, 1])), icc_profile=adobe), PIXELS)
    np.testing.assert_allclose(decoded(gamma(100_000), chromaticities(profiles.ADOBE_XY), icc_profile=p3), P3, atol=2)


@pytest.mark.parametrize("value, power", [(100_000, 1.0), (55_556, 1.8)])
def test_gamma_and_chromaticities(value, power):
    result = decoded(gamma(value), chromaticities(profiles.ADOBE_XY))
    expected = profiles.expected_srgb(PIXELS, profiles.ADOBE_XY, lambda level: level**power)
    np.testing.assert_allclose(result, expected, atol=2)


def test_gamma_of_srgb_stands_for_its_curve():
    np.testing.assert_allclose(decoded(gamma(45_455), chromaticities(profiles.P3_XY)), P3, atol=2)


@pytest.mark.parametrize(
    "chunks",
    [
        [gamma(45_455), chromaticities(profiles.SRGB_XY)],
        [gamma(45_455)],
        [gamma(100_000)],  # alone it is often wrong
        [chromaticities(profiles.ADOBE_XY)],
        [(b"sRGB", b"\0"), gamma(100_000), chromaticities(profiles.ADOBE_XY)],
        [(b"cICP", bytes([9, 16, 0, 1]))],  # HDR
        [(b"cICP", bytes([12, 13, 0]))],
        [(b"cICP", bytes([12, 13, 0, 0]))],
        [gamma(0), chromaticities(profiles.ADOBE_XY)],
        [gamma(1), chromaticities(((0.1, 0.1),) * 3)],
        [gamma(100_000), (b"cHRM", bytes(32))],
        [gamma(100_000), (b"cHRM", b"\xff" * 32)],
    ],
)
def test_others_leave_pixels_alone(chunks):
    np.testing.assert_array_equal(decoded(*chunks), PIXELS)


@pytest.mark.parametrize("primaries, transfer", [(0, 0), (2, 2), (12, 16), (9, 18), (22, 13), (65535, 65535)])
def test_unknown_code_points(primaries, transfer):
    assert code_point_profile(primaries, transfer) == b""


def test_code_points_of_heic():
    heif, out = pytest.importorskip("pillow_heif"), io.BytesIO()
    image = heif.from_pillow(Image.fromarray(PIXELS))
    image.save(out, quality=100, chroma=444, color_primaries=12, transfer_characteristics=13)
    assert np.abs(TRANSFORM.decode(out.getvalue(), "it") - P3).mean() < 2
    assert np.abs(PIXELS - P3).mean() > 4


def test_code_points_of_avif():
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, "AVIF", quality=100, subsampling="4:4:4")
    data = out.getvalue()
    start = data.index(b"colrnclx") + 8
    p3 = data[:start] + struct.pack(">HH", 12, 13) + data[start + 4 :]
    assert np.abs(TRANSFORM.decode(p3, "it") - P3).mean() < 2
    assert np.abs(TRANSFORM.decode(data, "it").astype(int) - PIXELS).mean() < 2
