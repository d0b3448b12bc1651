"""Converts images from the color space of an embedded ICC profile to sRGB, by LittleCMS (PIL.ImageCms).

Relative colorimetric with black point compensation: colors that sRGB has are kept, black stays black, and what is
outside is clipped. A profile that is sRGB by what it does, whatever it calls itself, converts nothing.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import threading
from collections import OrderedDict

import numpy as np
from PIL import Image, ImageCms

logger = logging.getLogger(__name__)

_MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}  # of images, by the color space of a profile
_GRAY_MODES, _CMYK = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N"), "CMYK"
_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION
# Small profiles of sRGB, such as `c2`, approximate its curve to so many levels of 255; gamma 2.2 is 8 away.
_SRGB_TOLERANCE = 2
_MAX_CACHED = 64  # a conversion from CMYK takes 2 MB


class Conversion:
    """A conversion of pixels to sRGB.

    Args:
        profile: an ICC profile.

    Attributes:
        mode: PIL mode of the images that it converts: "L", "RGB" or "CMYK".
        is_identity: whether the profile is sRGB, so that there is nothing to convert.

    Raises:
        ImageCms.PyCMSError, KeyError, OSError, ValueError: the profile cannot be used.
    """

    def __init__(self, profile: bytes) -> None:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        self.mode = _MODES[source.profile.xcolor_space.strip()]
        target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        self._transform = ImageCms.ImageCmsTransform(source, target, self.mode, "RGB", _INTENT, flags=_FLAGS)
        self.is_identity = self.mode != _CMYK and self._difference() <= _SRGB_TOLERANCE

    def __call__(self, image: Image.Image) -> Image.Image:
        """Returns an image in `mode`, or that with alpha, as RGB or RGBA in sRGB."""
        if image.mode in ("LA", "RGBA"):
            *_, alpha = image.split()
            converted = self(image.convert(self.mode))
            converted.putalpha(alpha)
            return converted
        return self._transform.apply(image)

    @functools.cached_property
    def gray_curve(self) -> np.ndarray:
        """sRGB level in [0, 255] of each of the 256 gray levels."""
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
        return np.asarray(self(ramp.convert(self.mode)).convert("L"))[0].astype(np.float64)

    def _difference(self) -> int:
        """Returns the largest change of a level that the conversion makes to a sample of all colors."""
        if self.mode == "L":
            samples = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
        else:
            corners = np.linspace(0, 255, 9).astype(np.uint8)
            cube = np.stack(np.meshgrid(corners, corners, corners), axis=-1).reshape(-1, 3)
            ramps = np.arange(256)[:, None, None] * np.array([[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
            samples = np.concatenate([cube, ramps.reshape(-1, 3).astype(np.uint8)])
        image = Image.fromarray(samples[None])
        converted = np.asarray(self(image.convert(self.mode)))
        return int(np.abs(converted.astype(int) - samples[None]).max())


class _Cache:
    """The conversions last used, by a hash of their profile; None for profiles that convert nothing. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._conversions: OrderedDict[bytes, Conversion | None] = OrderedDict()

    def get(self, profile: bytes, name: str) -> Conversion | None:
        key = hashlib.blake2b(profile, digest_size=16).digest()
        with self._lock:
            if key in self._conversions:
                self._conversions.move_to_end(key)
                return self._conversions[key]
        # two threads may make the same one: better than that all wait
        conversion = _make_conversion(profile, name)
        with self._lock:
            self._conversions[key] = conversion
            while len(self._conversions) > _MAX_CACHED:
                self._conversions.popitem(last=False)
        return conversion


_cache = _Cache()
_warned = threading.Event()


def find_conversion(profile: bytes, mode: str, name: str) -> Conversion | None:
    """Returns the conversion of an image to sRGB; None if it is sRGB, or its profile is of no use.

    Gray images may have a profile of gray or of RGB. A profile that is damaged, or of other channels than the image, is
    ignored, as viewers do.

    Args:
        profile: the ICC profile, empty for none.
        mode: PIL mode of the image.
        name: name of the record, for the log.
    """
    conversion = _cache.get(profile, name) if profile else None
    if conversion is None:
        return None
    fits = {"L": mode in _GRAY_MODES, "RGB": mode != _CMYK, "CMYK": mode == _CMYK}[conversion.mode]
    return conversion if fits else None


def _make_conversion(profile: bytes, name: str) -> Conversion | None:
    try:
        conversion = Conversion(profile)
    except Exception as error:  # the reader of profiles raises errors of many kinds
        _warn_once(name, " ".join(str(error).split())[:200] or type(error).__name__)
        return None
    return None if conversion.is_identity else conversion


def _warn_once(name: str, reason: str) -> None:
    """Logs the first color profile that cannot be used; there may be millions."""
    if not _warned.is_set():
        _warned.set()
        logger.warning(
            "%r has a color profile that cannot be used (%s): its colors are taken as sRGB, as are those of other such "
            "images, which are not named",
            name,
            reason,
        )
