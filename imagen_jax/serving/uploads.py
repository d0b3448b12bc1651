"""Images of strangers: decoded with bounds that are checked before any pixel is, one at a time."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
from PIL import Image

from imagen_jax.errors import ConfigError
from imagen_jax.images.files import decode_image
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.serving.http_errors import HttpError
from imagen_jax.serving.http_limits import HttpLimits

_FORMATS = ("PNG", "JPEG")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by channels
_LEAST_USEFUL_SIDE = 256  # pixels
_DEEP = ("I", "F")  # first letters of modes with more than 8 bits per channel
_decoding = threading.Lock()  # the memory for pixels is that of one image, however many are sent at once


@dataclasses.dataclass(frozen=True)
class UploadedImage:
    """An image that was sent.

    Attributes:
        pixels: uint8 [H, W, C], upright; the colors of transparent areas are those in the file.
        transparent: bool [H, W], of pixels that are seen through rather than seen; None where there are none.
    """

    pixels: np.ndarray
    transparent: np.ndarray | None


def read_image(data: bytes, name: str, channels: int, limits: HttpLimits) -> UploadedImage:
    """Decodes the file of an image.

    Args:
        data: of a PNG or JPEG file.
        name: of the field, for messages.
        channels: of the result.
        limits: of pixels.

    Raises:
        HttpError: the file cannot be read, is too large, or has more than 8 bits per channel.
    """
    with _decoding:
        image = _decode(data, name, limits)
        transparent = None
        if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
            transparent = np.asarray(image.convert("RGBA").getchannel("A")) < 128
        pixels = np.asarray(image.convert("RGB").convert(_MODES[channels]))
    is_opaque = transparent is None or not transparent.any()
    return UploadedImage(pixels if pixels.ndim == 3 else pixels[..., None], None if is_opaque else transparent)


def _decode(data: bytes, name: str, limits: HttpLimits) -> Image.Image:
    try:
        image = decode_image(data, name, _FORMATS, limits.upload_pixels)
    except ConfigError as error:
        raise HttpError(400, error.problems[0], name) from error
    except Exception as error:  # Pillow's readers raise errors of their own for damaged files
        raise HttpError(400, f"{name} is damaged ({type(error).__name__}): send a PNG or JPEG file", name) from error
    if max(image.size) > limits.side:
        text = f"{name} has {image.height:,}×{image.width:,} pixels: give at most {limits.side:,} on a side"
        raise HttpError(400, text, name)
    if image.mode.startswith(_DEEP):
        raise HttpError(400, f"{name} has more than 8 bits per channel: save it with 8 bits", name)
    return image


def read_mask(data: bytes, name: str, limits: HttpLimits) -> np.ndarray:
    """Decodes the file of a mask, uint8 [H, W]: 255 where pixels are drawn anew.

    Those are transparent, as OpenAI's API has it, or white, of a mask without transparent areas.

    Args:
        data: of a PNG or JPEG file.
        name: of the field, for messages.
        limits: of pixels.

    Raises:
        HttpError: as `read_image`.
    """
    mask = read_image(data, name, 1, limits)
    is_drawn = mask.pixels[..., 0] >= 128 if mask.transparent is None else mask.transparent
    return np.where(is_drawn, 255, 0).astype(np.uint8)


def useful_side(pipeline: ImagenPipeline) -> int:
    """Returns the pixels of the shorter side of an image to learn from that are of use, twice those of samples."""
    return max(_LEAST_USEFUL_SIDE, 2 * max(pipeline.image_size))


def read_subject(data: bytes, name: str, pipeline: ImagenPipeline, limits: HttpLimits) -> np.ndarray:
    """Decodes the file of an image to learn from, uint8 [H, W, C], reduced to what is of use.

    Args:
        data: of a PNG or JPEG file.
        name: of the field, for messages.
        pipeline: the cascade that learns from it.
        limits: of pixels.

    Raises:
        HttpError: as `read_image`; or it has transparent areas, or fewer pixels than the images of the cascade.
    """
    image = read_image(data, name, pipeline.stages[-1].stage.config.channels, limits)
    if image.transparent is not None:
        raise HttpError(400, f"{name} has transparent areas: put it on a background", name)
    height, width = image.pixels.shape[:2]
    least = pipeline.image_size
    if height < least[0] or width < least[1]:
        text = f"{name} has {height}×{width} pixels, fewer than the {least[0]}×{least[1]} of samples: give a larger one"
        raise HttpError(400, text, name)
    share = useful_side(pipeline) / min(height, width)
    if share >= 1:
        return image.pixels
    size = max(1, round(width * share)), max(1, round(height * share))
    planes = [Image.fromarray(plane) for plane in np.moveaxis(image.pixels, -1, 0)]
    return np.stack([np.asarray(plane.resize(size, Image.Resampling.LANCZOS)) for plane in planes], -1)
