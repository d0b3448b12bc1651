"""Which image files can be decoded here; HEIC, the format of phones, needs the package pillow-heif."""

from __future__ import annotations

import functools
import importlib.util

from imagen_jax.errors import require

_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
_HEIF_SUFFIXES = (".heic", ".heif", ".hif")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_ANY_BRANDS = (b"mif1", b"msf1")  # of HEIC as of AVIF: the compatible brands tell which
_MAX_BRANDS = 512  # bytes of a file's head that are searched for brands


def image_suffixes() -> tuple[str, ...]:
    """Returns the suffixes, in lower case, of image files that can be decoded with the installed packages."""
    return _SUFFIXES + (_HEIF_SUFFIXES if importlib.util.find_spec("pillow_heif") else ())


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
