"""Which image files can be decoded here; HEIC, the format of phones, needs the package pillow-heif."""

from __future__ import annotations

import functools
import importlib.util

from PIL import features

from imagen_jax.errors import require

_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".pjpeg", ".pjp"),
    *(".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
)
AVIF_SUFFIXES = (".avif", ".avifs")
HEIF_SUFFIXES = (".heic", ".heif", ".hif", ".heics", ".heifs")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_ANY_BRANDS = (b"mif1", b"msf1")  # of HEIC as of AVIF: the compatible brands tell which
_MAX_BRANDS = 512  # bytes of a file's head that are searched for brands


@functools.cache
def has_avif() -> bool:
    """Returns whether this build of Pillow decodes AVIF."""
    return features.check("avif") is True


def has_heif() -> bool:
    """Returns whether pillow-heif, which decodes HEIC, is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def image_suffixes() -> tuple[str, ...]:
    """Returns the suffixes, in lower case, of the image files that can be decoded with what is installed."""
    return _SUFFIXES + (AVIF_SUFFIXES if has_avif() else ()) + (HEIF_SUFFIXES if has_heif() else ())


def is_heif(data: bytes) -> bool:
    """Returns whether an image file is HEIC or another kind of HEIF with HEVC, by the brands in its first box."""
    if data[4:8] != b"ftyp":
        return False
    brands = data[8 : min(int.from_bytes(data[:4], "big"), _MAX_BRANDS)]
    named = [brands[i : i + 4] for i in range(0, len(brands), 4) if i != 4]  # the second is a version number
    major = named[0] if named else b""
    return major in _HEIF_BRANDS or (major in _ANY_BRANDS and not {*named}.isdisjoint(_HEIF_BRANDS))


@functools.cache
def register_heif() -> None:
    """Lets PIL open HEIC files, as the format "HEIF". Raises ConfigError if pillow-heif is not installed."""
    # what is beside the image is never decoded: a thumbnail may show something else, and takes memory of its own
    require("pillow_heif", "data").register_heif_opener(
        thumbnails=False, depth_images=False, aux_images=False, decode_threads=1
    )
