"""Turns image files into images with the size, channels and bit depth of a stage.

Supported files: JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF, and HEIC with pillow-heif; palettes, gray, CMYK, alpha,
16 bits, EXIF orientation, color profiles; the first frame of an animation. A file that cannot be read raises
CorruptRecordError with the reason.

Files may be hostile: the size of an image is read from its header, and checked, before any pixel is decoded. Metadata
are taken off before (see `images/containers.py`): neither long nor damaged ones make sound pixels unreadable.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from imagen_jax.data.record import CorruptRecordError
from imagen_jax.errors import ConfigError
from imagen_jax.images import formats
from imagen_jax.images.array import Size, alpha_composite, format_height_width, to_uint8
from imagen_jax.images.color_profile import Conversion, find_conversion
from imagen_jax.images.color_space import container_profile, png_profile
from imagen_jax.images.containers import take_apart

CROPS = ("center", "random")

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by number of channels
_EXIF_ORIENTATION = 0x0112
_HEIF_DEPTH = "bit_depth"  # what pillow-heif calls the bits of a channel
_TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 322, 323
_EXIF_TRANSPOSE = {  # undoes an EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)  # orientations that swap height and width
# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that is still at least twice the target size: the result of the
# resize filter differs from that of the full image by about one gray level.
_DRAFT_SCALE = 2

_ALPHA_MODES = {"L": "LA", "RGB": "RGBA"}  # with alpha, by mode without
_MODES_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_MODES_32_BIT = ("I", "F")

# PIL warns or raises at limits of its own: our limit is checked for every file instead.
Image.MAX_IMAGE_PIXELS = None


def crop_image(image: np.ndarray, size: Size, rng: np.random.Generator | None = None) -> np.ndarray:
    """Crops an image [H, W, C] at a uniformly random position; at the center without `rng`."""
    height, width = size
    rows, columns = image.shape[0] - height, image.shape[1] - width
    top, left = (rows // 2, columns // 2) if rng is None else (rng.integers(rows + 1), rng.integers(columns + 1))
    return image[top : top + height, left : left + width]


@dataclass(frozen=True)
class Transform:
    """Decodes image files to images [H, W, C] of one size.

    Attributes:
        size: (H, W) of the images.
        channels: 1, 3 or 4.
        bits: 8 or 16 per channel.
        crop: how images with another aspect ratio are cropped in training, "center" or "random".
        flip: whether half of the training images are mirrored; captions that say left or right become wrong.
        background: gray level or (R, G, B), in [0, 255], on which alpha is composited if there are fewer than 4
            channels.
        upscale: whether images smaller than `size` are enlarged; otherwise they are corrupt records.
        max_pixels: limit on the pixels of a file; larger images are corrupt records. A thread needs up to 12 bytes per
            pixel.
        convert_profile: whether colors are converted to sRGB from the color profile in a file.
    """

    size: Size
    channels: int
    bits: int
    crop: str
    flip: bool
    background: int | tuple[int, ...]
    upscale: bool
    max_pixels: int
    convert_profile: bool = True

    def decode(self, data: bytes, name: str) -> np.ndarray:
        """Decodes an image file.

        Args:
            data: contents of the file.
            name: name of the record, for errors.

        Returns:
            The image, uint8 or uint16 [H, W, C], possibly longer than `size` in one direction.

        Raises:
            CorruptRecordError: the file cannot be read, or its image is too large or too small.
        """
        with _open_image(data, name) as opened:
            array = self._read(opened, name)
        return array if array.ndim == 3 else array[..., None]

    def fit(self, image: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Crops a decoded image to [H, W, C].

        Args:
            image: the result of `decode`.
            rng: random generator for the random crops and flips of training; None for the center crop.
        """
        cropped = crop_image(image, self.size, rng if self.crop == "random" else None)
        return cropped[:, ::-1] if rng is not None and self.flip and rng.random() < 0.5 else cropped

    def _read(self, opened: _OpenImage, name: str) -> np.ndarray:
        image = opened.image
        width, height = _largest_buffer(image)
        if width * height > self.max_pixels:
            raise CorruptRecordError(
                name, f"{width}×{height} pixels are more than data.transform.max_pixels, {self.max_pixels}"
            )
        height, width = self._covering_size(opened.upright_size, name)
        # PIL's sizes are (width, height), here of the image as stored
        stored_size = (height, width) if opened.orientation in _SWAPS_SIDES else (width, height)
        image.draft(None, (stored_size[0] * _DRAFT_SCALE, stored_size[1] * _DRAFT_SCALE))
        profile = opened.profile if self.convert_profile else b""
        conversion = find_conversion(profile, image.mode, name)
        if image.mode in _MODES_16_BIT:
            gray = _apply_orientation(_resize(image.convert("F"), stored_size), opened.orientation)
            return self._from_gray(gray, conversion)
        if image.mode in _MODES_32_BIT:
            raise CorruptRecordError(name, f"its pixels have 32 bits (mode {image.mode}) and no known range")
        depth = 16 if ";16" in str(image.tile) else image.info.get(_HEIF_DEPTH, 8)
        if self.bits == 16 and depth > 8:
            raise CorruptRecordError(
                name, f"its colors have {depth} bits, of which 8 can be read: set config.data.bits to 8"
            )
        # alpha is kept until it is composited
        mode = "RGBA" if image.has_transparency_data else _PIL_MODES[self.channels]
        if conversion is not None:
            mode = conversion.mode
            mode = _ALPHA_MODES.get(mode, mode) if image.has_transparency_data else mode
        converted = image if image.mode == mode else image.convert(mode)  # convert always copies
        resized = _apply_orientation(_resize(converted, stored_size), opened.orientation)
        # colors are converted last, when there are few pixels
        return self._from_color(resized if conversion is None else conversion(resized))

    def _covering_size(self, original: Size, name: str) -> Size:
        """Returns the smallest (height, width) with the same aspect ratio that covers `size`."""
        original_text, target_text = format_height_width(original), format_height_width(self.size)
        scale = max(new / old for new, old in zip(self.size, original, strict=True))
        if scale > 1 and not self.upscale:
            raise CorruptRecordError(
                name, f"{original_text} is smaller than {target_text}: data.transform.upscale enlarges such images"
            )
        height, width = (max(new, round(old * scale)) for new, old in zip(self.size, original, strict=True))
        if height * width > self.max_pixels:
            raise CorruptRecordError(name, f"its aspect ratio, {original_text}, is too extreme to cover {target_text}")
        return height, width

    def _from_color(self, image: Image.Image) -> np.ndarray:
        if image.mode == "RGBA" and self.channels != 4:
            opaque = Image.fromarray(alpha_composite(np.asarray(image), np.asarray(self.background)))
            image = opaque
        if image.mode != _PIL_MODES[self.channels]:
            image = image.convert(_PIL_MODES[self.channels])
        array = np.asarray(image)
        return array if self.bits == 8 else array.astype(np.uint16) * 257

    def _from_gray(self, image: Image.Image, conversion: Conversion | None) -> np.ndarray:
        """Converts 16-bit gray levels in PIL mode "F", which the resize filter may have pushed out of range."""
        levels = np.clip(np.asarray(image), 0, 65535)
        if conversion is not None:
            # LittleCMS as PIL has it converts 8 bits: in between its 256 levels the curve is interpolated
            levels = 257 * np.interp(levels / 257, np.arange(256), conversion.gray_curve)
        gray = np.round(levels).astype(np.uint16)[..., None]
        opaque = np.full_like(gray, 65535)
        levels = np.concatenate({1: [gray], 3: [gray] * 3, 4: [gray] * 3 + [opaque]}[self.channels], axis=-1)
        return to_uint8(levels) if self.bits == 8 else levels


@dataclass(frozen=True)
class _OpenImage:
    """An image file of which only the header is read, without its metadata, and those of them that matter.

    Attributes:
        image: the opened file.
        exif: the EXIF block, possibly empty or damaged.
        profile: the ICC profile, or one for the color space that the file names; possibly empty or damaged.
    """

    image: ImageFile.ImageFile
    exif: bytes
    profile: bytes

    @functools.cached_property
    def orientation(self) -> int:
        """EXIF orientation; 1 (upright) if it is missing or unreadable."""
        exif = Image.Exif()
        try:
            exif.load(self.exif)
            return int(exif.get(_EXIF_ORIENTATION, 1))
        except Exception:  # cameras and hostile files write anything here
            return 1

    @property
    def upright_size(self) -> Size:
        """(height, width) after the EXIF orientation is applied."""
        width, height = self.image.size[::-1] if self.orientation in _SWAPS_SIDES else self.image.size
        return height, width


@contextlib.contextmanager
def _open_image(data: bytes, name: str) -> Iterator[_OpenImage]:
    """Opens an image file, of which only the header is read at first.

    Raises:
        CorruptRecordError: the file cannot be read, now or by what the caller does with the image.
    """
    try:
        parts = take_apart(data)
        with Image.open(io.BytesIO(parts.pixels), formats=_formats_of(data)) as image:
            embedded = parts.profile or image.info.get("icc_profile")
            profile = png_profile(parts.colors, embedded if isinstance(embedded, bytes) else b"")
            exif = parts.exif or image.info.get("exif") or b""
            yield _OpenImage(image, exif, profile or container_profile(data))
    except (CorruptRecordError, MemoryError):
        raise
    except Exception as error:  # each of PIL's readers raises errors of its own
        raise CorruptRecordError(name, _failure_reason(data, error)) from error


def _formats_of(data: bytes) -> tuple[str, ...]:
    """Returns the formats that a file may have. Raises ConfigError if it is HEIC, which cannot be decoded here."""
    if not formats.is_heif(data):
        return _FORMATS
    formats.register_heif()
    return ("HEIF",)


def read_size(data: bytes, name: str) -> Size:
    """Returns the upright (height, width) from the header of an image file.

    Args:
        data: contents of the file.
        name: name of the record, for errors.

    Raises:
        CorruptRecordError: the header cannot be read.
    """
    with _open_image(data, name) as opened:
        return opened.upright_size


def _largest_buffer(image: Image.Image) -> tuple[int, int]:
    """Returns the (width, height) that decoding allocates: TIFF tiles can be far larger than the image."""
    tags = getattr(image, "tag_v2", {})
    tile = tags.get(_TIFF_TILE_WIDTH, 0), tags.get(_TIFF_TILE_HEIGHT, 0)
    return max(image.size, tile, key=math.prod)


def _apply_orientation(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_EXIF_TRANSPOSE[orientation]) if orientation in _EXIF_TRANSPOSE else image


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resizes to (width, height). PIL's filter widens when it downsamples, against aliasing (arXiv:2104.11222)."""
    return image.resize(size, Image.Resampling.BICUBIC)


def _failure_reason(data: bytes, error: Exception) -> str:
    """Returns in a few words why a file could not be read."""
    if not data:
        return "the file is empty"
    if isinstance(error, ConfigError):
        return f"a HEIC image: {error}"
    if isinstance(error, UnidentifiedImageError) and formats.is_heif(data):
        return "a HEIC image that is damaged or cut"
    if isinstance(error, UnidentifiedImageError):
        return f"not an image in any of {', '.join(_FORMATS)}"
    return " ".join(str(error).split())[:200] or type(error).__name__
