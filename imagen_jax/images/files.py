"""Image files that a user names, read within bounds."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from imagen_jax.errors import ConfigError, first_line

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 64 * 2**20


def read_bytes(path: Path, name: str) -> bytes:
    """Returns the bytes of the file of a flag. Raises ConfigError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{name} {str(path)!r} cannot be read ({error.strerror or first_line(error)})") from error


def decode_image(
    data: bytes, name: str, formats: tuple[str, ...] = FORMATS, max_pixels: int | None = None
) -> Image.Image:
    """Returns the image of a file, turned as its EXIF data say; its header is read first.

    Args:
        data: of the file.
        name: of the image, for messages.
        formats: that it may have.
        max_pixels: that it may have; by default `MAX_PIXELS`.

    Raises:
        ConfigError: it is not an image of these formats, it is damaged, or it has too many pixels.
    """
    most = MAX_PIXELS if max_pixels is None else max_pixels
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            if image.width * image.height > most:
                raise ConfigError(
                    f"{name} has {image.height}×{image.width} pixels, more than the {most // 2**20} Mi that are "
                    "decoded: give a smaller image"
                )
            image.load()
            return ImageOps.exif_transpose(image) or image
    except ConfigError:
        raise
    except UnidentifiedImageError as error:  # whose text is an address in memory
        raise ConfigError(f"{name} is in another format, or damaged: give a file of {', '.join(formats)}") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ConfigError(
            f"{name} cannot be decoded as an image ({first_line(error)}): give a file of {', '.join(formats)}"
        ) from error
