"""Colors of embedded profiles become sRGB: checked against the matrices of the color spaces, not against LittleCMS."""

import dataclasses
import io
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms

from imagen_jax.data.transforms import Transform
from imagen_jax.images import color_profile
from tests.helpers import profiles

TRANSFORM = Transform((32, 32), 3, 8, crop="center", flip=False, background=0, upscale=False, max_pixels=10**6)
SPACES = {
    "Adobe RGB": (profiles.ADOBE_XY, profiles.gamma(563 / 256), lambda level: level ** (563 / 256)),
    "Display P3": (profiles.P3_XY, profiles.parametric_srgb(), profiles.srgb_decode),
    "linear": (profiles.SRGB_XY, profiles.gamma(1.0), lambda level: level),
}
SRGB = {
    "LittleCMS": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    "version 2": profiles.rgb_profile(profiles.SRGB_XY, profiles.table(profiles.srgb_decode, 1024)),
    "version 4": profiles.rgb_profile(profiles.SRGB_XY, profiles.parametric_srgb(), version=4),
    "of few points": profiles.rgb_profile(profiles.SRGB_XY, profiles.table(profiles.srgb_decode, 64)),
}
LOSSLESS = {
    "PNG": {},
    "WEBP": {"lossless": True, "exact": True},
    "TIFF": {},
    "JPEG": {"quality": 100, "subsampling": 0},
}


def to(**changes):
    return dataclasses.replace(TRANSFORM, **changes)


def blocks(channels=3, seed=0):
    """An image [32, 32, channels] of 16 colors."""
    colors = np.random.default_rng(seed).integers(0, 256, (4, 4, channels), dtype=np.uint8)
    return colors.repeat(8, 0).repeat(8, 1)


def file_of(image, profile, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, icc_profile=profile, **options)
    return out.getvalue()


def decoded(image, profile, transform=TRANSFORM, kind="PNG", **options):
    return transform.decode(file_of(image, profile, kind, **options), "it")


def adobe_rgb():
    return profiles.rgb_profile(*SPACES["Adobe RGB"][:2])


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("name", SPACES)
def test_colors_become_srgb(name, kind):
    primaries, curve, decode = SPACES[name]
    pixels = blocks()
    result = decoded(Image.fromarray(pixels), profiles.rgb_profile(primaries, curve), kind=kind, **LOSSLESS[kind])
    expected = profiles.expected_srgb(pixels, primaries, decode)
    assert np.abs(expected - pixels).max() > 20
    if kind == "JPEG":  # whose rounding the curve of linear light multiplies in dark colors
        assert np.abs(result - expected).mean() < 3
    else:
        np.testing.assert_allclose(result, expected, atol=2)


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("name", SRGB)
def test_srgb_is_unchanged_to_the_bit(name, kind):
    pixels = Image.fromarray(blocks())
    np.testing.assert_array_equal(
        decoded(pixels, SRGB[name], kind=kind, **LOSSLESS[kind]), decoded(pixels, None, kind=kind, **LOSSLESS[kind])
    )


def test_conversion_is_optional():
    pixels = blocks()
    result = decoded(Image.fromarray(pixels), adobe_rgb(), to(convert_profile=False))
    np.testing.assert_array_equal(result, pixels)


def test_alpha_is_kept_apart():
    pixels = blocks(4)
    result = decoded(Image.fromarray(pixels), adobe_rgb(), to(channels=4))
    np.testing.assert_array_equal(result[..., 3], pixels[..., 3])
    expected = profiles.expected_srgb(pixels[..., :3], *SPACES["Adobe RGB"][::2])
    visible = pixels[..., 3] > 128  # the others are rounded when they are multiplied by alpha
    np.testing.assert_allclose(result[visible][:, :3], expected[visible], atol=4)


def test_background_is_srgb():
    clear = Image.new("RGBA", (32, 32), (9, 9, 9, 0))
    assert (decoded(clear, adobe_rgb(), to(background=(10, 200, 30))) == (10, 200, 30)).all()


def test_palettes():
    pixels = Image.fromarray(blocks())
    palette = pixels.quantize(16, Image.Quantize.FASTOCTREE)
    np.testing.assert_allclose(decoded(palette, adobe_rgb()), decoded(palette.convert("RGB"), adobe_rgb()), atol=0)
    assert np.abs(decoded(palette, adobe_rgb()).astype(int) - decoded(palette, None)).max() > 5


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("make", [profiles.gray_profile, lambda curve: profiles.rgb_profile(profiles.SRGB_XY, curve)])
def test_gray(make, channels):
    """Gray images have a profile of gray, or one of RGB for equal levels."""
    levels = blocks(1)[..., 0]
    result = decoded(Image.fromarray(levels), make(profiles.gamma(1.8)), to(channels=channels))
    expected = 255 * profiles.srgb_encode((levels / 255) ** 1.8)
    assert result.shape[-1] == channels
    np.testing.assert_allclose(result[..., 0], expected, atol=2)


@pytest.mark.parametrize("bits", [8, 16])
def test_gray_of_16_bits(bits):
    levels = np.sort(np.random.default_rng(0).integers(0, 65536, 32 * 32, dtype=np.uint16)).reshape(32, 32)
    profile = profiles.gray_profile(profiles.gamma(1.8))
    result = decoded(Image.fromarray(levels), profile, to(bits=bits, channels=1))[..., 0]
    expected = profiles.srgb_encode((levels / 65535) ** 1.8)
    np.testing.assert_allclose(result / (2**bits - 1), expected, atol=2 / 255)
    if bits == 16:  # the depth is kept
        assert len(np.unique(result)) > 900


def corners():
    """Colors of inks that no formula gives: those of the corners of CMYK."""
    lab = np.random.default_rng(3).uniform((30, -30, -30), (80, 30, 30), (2, 2, 2, 2, 3))
    lab[0, 0, 0, 0], lab[..., 1, :] = (100, 0, 0), (0, 0, 0)
    return lab


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk(kind):
    lab = corners()
    inks = np.stack(np.meshgrid(*[[0, 255]] * 4, indexing="ij"), -1).astype(np.uint8)
    pixels = inks.reshape(4, 4, 4).repeat(8, 0).repeat(8, 1)
    image = Image.frombytes("CMYK", (32, 32), pixels.tobytes())
    result = decoded(image, profiles.cmyk_profile(lab), kind=kind, **({"quality": 100} if kind == "JPEG" else {}))
    expected = profiles.lab_to_srgb(lab).reshape(4, 4, 3).repeat(8, 0).repeat(8, 1)
    np.testing.assert_allclose(result, expected, atol=4)  # a and b of the profile are integers
    assert np.abs(result.astype(int) - decoded(image, None, kind=kind)).max() > 50


@pytest.mark.parametrize(
    "mode, profile",
    [
        ("RGB", b"rubbish"),
        ("RGB", adobe_rgb()[:300]),
        ("RGB", adobe_rgb()[:128] + bytes(400)),
        ("RGB", profiles.gray_profile(profiles.gamma(1.8))),
        ("RGB", profiles.cmyk_profile(corners())),
        ("CMYK", adobe_rgb()),
        ("L", profiles.cmyk_profile(corners())),
    ],
)
def test_profiles_of_no_use_are_ignored(mode, profile):
    image = Image.fromarray(blocks()).convert(mode)
    np.testing.assert_array_equal(decoded(image, profile, kind="TIFF"), decoded(image, None, kind="TIFF"))


def test_the_first_broken_profile_is_named(caplog, monkeypatch):
    monkeypatch.setattr(color_profile, "_warned", type(color_profile._warned)())
    with caplog.at_level(logging.WARNING):
        for seed in range(3):
            decoded(Image.fromarray(blocks()), b"rubbish %d" % seed)
    assert [record.args[0] for record in caplog.records] == ["it"]


def test_threads_get_their_own_colors(monkeypatch):
    """More profiles than are kept, in no order, from several threads."""
    monkeypatch.setattr(color_profile, "_MAX_CACHED", 4)
    curves = [1 + number / 8 for number in range(2 * color_profile._MAX_CACHED)]
    made = [profiles.rgb_profile(profiles.SRGB_XY, profiles.gamma(curve)) for curve in curves]
    files = [file_of(Image.fromarray(blocks()), profile) for profile in made]
    alone = [TRANSFORM.decode(file, "it") for file in files]
    order = np.random.default_rng(0).integers(len(files), size=100)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda index: TRANSFORM.decode(files[index], "it"), order))
    for index, result in zip(order, together, strict=True):
        np.testing.assert_array_equal(result, alone[index])
    assert len(color_profile._cache._conversions) <= color_profile._MAX_CACHED
