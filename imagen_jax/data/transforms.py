"""From the bytes of an image file to a picture of the size, channels and bits that a stage is trained on.

What a file can be: JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF; palettes, gray, CMYK, alpha, 16 bits, turned by EXIF; of an
animation the first frame. Whatever cannot be read raises BrokenRecord, which says why. Colour profiles are not applied.

Files of strangers are read too: a picture's size is known from its header, and bounded, before a pixel is decoded.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from imagen_jax.data.record import BrokenRecord
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size, composite, dtype_of, in_pixels, to_8_bits

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
CROPS = ("centre", "random")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of PIL, by channels
EXIF_ORIENTATION = 0x0112
TIFF_TILE_WIDTH, TIFF_TILE_HEIGHT = 322, 323
TURNED = {  # what undoes an EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # the orientations that swap height and width
# A JPEG is decoded at 1/2, 1/4 or 1/8 where that leaves twice the size asked for: the filter still has enough to work
# on, and differs from that of the whole by a grey level or so.
DRAFT = 2

DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
UNBOUNDED = ("I", "F")

# PIL's own bound warns, or raises, at numbers of its own: ours is checked on every file in its place.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class Transform:
    """How image files become pictures [H, W, C] of one size.

    Args:
        size: (H, W) of the pictures.
        channels: 1, 3 or 4 of them.
        bits: 8 or 16.
        crop: what is cut of pictures of another aspect, "centre" or "random".
        flip: whether half of the pictures in training are mirrored; captions that say left or right then lie.
        background: what alpha is composited on where there are fewer than 4 channels, a gray level or (R, G, B) of
            [0, 255].
        upscale: whether pictures smaller than the size are enlarged; they are broken otherwise.
        max_pixels: in a file; more are broken. Each thread takes up to 12 bytes for each.

    Raises:
        UsageError: any of these is not as described.
    """

    size: Size
    channels: int
    bits: int
    crop: str
    flip: bool
    background: int | tuple[int, ...]
    upscale: bool
    max_pixels: int

    def __post_init__(self) -> None:
        if self.channels not in MODES:
            raise ConfigError(f"config.channels {self.channels} is not of image files: choose 1, 3 or 4")
        if self.crop not in CROPS:
            raise ConfigError(f"config.data.transform.crop {self.crop!r} is not known: choose centre or random")
        dtype_of(self.bits, "config.data.bits")
        levels = np.atleast_1d(self.background)
        if levels.shape not in ((1,), (3,)) or not ((levels >= 0) & (levels <= 255)).all():
            raise ConfigError(
                f"config.data.transform.background {self.background!r} is neither a gray level of [0, 255] nor three"
            )
        if self.max_pixels < self.size[0] * self.size[1]:
            raise ConfigError(
                f"config.data.transform.max_pixels {self.max_pixels} is less than the {in_pixels(self.size)} pixels of "
                "config.image_size"
            )

    def decode(self, data: bytes, name: str) -> np.ndarray:
        """The picture in a file's bytes, uint8 or uint16: [H, W, C], or longer in one direction.

        Raises:
            BrokenRecord: it cannot be read, is too large, or too small.
        """
        with opened(data, name) as image:
            array = self._read(image, name)
        return array if array.ndim == 3 else array[..., None]

    def fit(self, image: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """The part [H, W, C] of a decoded picture: the middle one, unless a generator is given that may choose."""
        height, width = self.size
        rows, columns = image.shape[0] - height, image.shape[1] - width
        top, left = rows // 2, columns // 2
        if rng is not None and self.crop == "random":
            top, left = rng.integers(rows + 1), rng.integers(columns + 1)
        part = image[top : top + height, left : left + width]
        return part[:, ::-1] if rng is not None and self.flip and rng.random() < 0.5 else part

    def _read(self, image: ImageFile.ImageFile, name: str) -> np.ndarray:
        width, height = most_at_once(image)
        if width * height > self.max_pixels:
            raise BrokenRecord(
                name, f"{width}×{height} pixels are more than data.transform.max_pixels, {self.max_pixels}"
            )
        orientation = orientation_of(image)
        after = self._covering(seen_size(image), name)
        as_stored = after if orientation in SIDEWAYS else after[::-1]  # (width, height), as PIL has them
        image.draft(None, (as_stored[0] * DRAFT, as_stored[1] * DRAFT))
        if image.mode in DEEP:
            return self._of_gray(turned(resized(image.convert("F"), as_stored), orientation))
        if image.mode in UNBOUNDED:
            raise BrokenRecord(name, f"its pixels have 32 bits (mode {image.mode}), and no range that is known")
        if self.bits == 16 and ";16" in str(image.tile):
            raise BrokenRecord(name, "its colours have 16 bits, of which 8 can be read: set config.data.bits to 8")
        # alpha stays until it is composited
        mode = "RGBA" if image.has_transparency_data else MODES[self.channels]
        as_asked = image if image.mode == mode else image.convert(mode)  # which copies in any case
        return self._of_colours(turned(resized(as_asked, as_stored), orientation))

    def _covering(self, before: Size, name: str) -> Size:
        """The least (height, width) of the same aspect that has room for the picture."""
        sides, asked = in_pixels(before), in_pixels(self.size)
        scale = max(new / old for new, old in zip(self.size, before, strict=True))
        if scale > 1 and not self.upscale:
            raise BrokenRecord(name, f"{sides} is smaller than {asked}: data.transform.upscale enlarges such pictures")
        height, width = (max(new, round(old * scale)) for new, old in zip(self.size, before, strict=True))
        if height * width > self.max_pixels:
            raise BrokenRecord(name, f"its sides, {sides}, are too different to fill {asked}")
        return height, width

    def _of_colours(self, image: Image.Image) -> np.ndarray:
        if image.mode == "RGBA" and self.channels != 4:
            opaque = Image.fromarray(composite(np.asarray(image), np.asarray(self.background)))
            image = opaque.convert(MODES[self.channels])
        array = np.asarray(image)
        return array if self.bits == 8 else array.astype(np.uint16) * 257

    def _of_gray(self, image: Image.Image) -> np.ndarray:
        """Of gray levels of 16 bits, "F" of PIL, after a filter that may have left their range."""
        gray = np.clip(np.round(np.asarray(image)), 0, 65535).astype(np.uint16)[..., None]
        opaque = np.full_like(gray, 65535)
        levels = np.concatenate({1: [gray], 3: [gray] * 3, 4: [gray] * 3 + [opaque]}[self.channels], axis=-1)
        return to_8_bits(levels) if self.bits == 8 else levels


@contextlib.contextmanager
def opened(data: bytes, name: str) -> Iterator[ImageFile.ImageFile]:
    """The image in a file's bytes, of which no more than the header has been read.

    Raises:
        BrokenRecord: it cannot be read, now or by what the caller asks of it.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image
    except (BrokenRecord, MemoryError):
        raise
    except Exception as error:  # of PIL's readers each raises what it likes
        raise BrokenRecord(name, reason(data, error)) from error


def size_in(data: bytes, name: str) -> Size:
    """The (height, width) that the header of an image file tells, as it should be seen. Raises BrokenRecord."""
    with opened(data, name) as image:
        return seen_size(image)


def seen_size(image: Image.Image) -> Size:
    """The (height, width) of an image once it is turned as EXIF says."""
    width, height = image.size[::-1] if orientation_of(image) in SIDEWAYS else image.size
    return height, width


def most_at_once(image: Image.Image) -> tuple[int, int]:
    """The (width, height) that decoding makes room for: the tiles of a TIFF can be far larger than the picture."""
    tags = getattr(image, "tag_v2", {})
    tile = tags.get(TIFF_TILE_WIDTH, 0), tags.get(TIFF_TILE_HEIGHT, 0)
    return max(image.size, tile, key=math.prod)


def orientation_of(image: Image.Image) -> int:
    """How a picture is turned in its file, as EXIF numbers it; 1, upright, where that is missing or unreadable."""
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        return int(exif.get(EXIF_ORIENTATION, 1))
    except Exception:  # cameras and hostile files write anything here
        return 1


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """The picture as it should be seen."""
    return image.transpose(TURNED[orientation]) if orientation in TURNED else image


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture at another (width, height). PIL's filter widens as they shrink: no aliasing (arXiv:2104.11222)."""
    return image.resize(size, Image.Resampling.BICUBIC)


def reason(data: bytes, error: Exception) -> str:
    """Why a file could not be read, in a few words."""
    if not data:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return f"not an image in any of {', '.join(FORMATS)}"
    return " ".join(str(error).split())[:200] or type(error).__name__
