"""Grids of images with captions, and PNG files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from imagen_jax.images import png
from imagen_jax.images.array import alpha_composite, to_uint8
from imagen_jax.images.labels import render_lines
from imagen_jax.io.atomic import atomic_write
from imagen_jax.io.bucket import BucketError

_MARGIN = 8
_FONT_SIZE = 13
_LINE_HEIGHT = 17
_MIN_LINE = 56  # pixels that a line of a caption has, also below a narrow image
_MAX_LINES = 12  # of a caption; it is truncated beyond
_CHECKERBOARD_SQUARES = 8  # squares of a checkerboard along the shorter side of an image


def image_grid(images: np.ndarray, captions: Sequence[str], columns: int, cell: int = 160) -> Image.Image:
    """Returns a grid of images with captions below them.

    Args:
        images: uint8 or uint16 [N, H, W, C]; the upper 8 bits are shown. RGBA is shown over a checkerboard; for other
            numbers of channels than 1, 3 and 4, channels are shown side by side in gray.
        captions: N texts.
        columns: images per row.
        cell: approximate width of each image in pixels; images are enlarged by an integer factor.
    """
    images = viewable_rgb(images)
    height, width = images.shape[1:3]
    # integer factors with nearest neighbor show the pixels of the model, without interpolation
    scale = max(1, round(cell / width))
    cell_width, cell_height = width * scale, height * scale
    lines = [render_lines(caption, max(cell_width, _MIN_LINE), _FONT_SIZE, _MAX_LINES) for caption in captions]
    text_height = _LINE_HEIGHT * max((len(wrapped) for wrapped in lines), default=0)
    rows = -(-len(images) // columns)
    grid = Image.new(
        "RGB",
        (columns * (cell_width + _MARGIN) + _MARGIN, rows * (cell_height + text_height + 2 * _MARGIN) + _MARGIN),
        "white",
    )
    draw = ImageDraw.Draw(grid)
    for index, (image, wrapped) in enumerate(zip(images, lines, strict=True)):
        left = _MARGIN + index % columns * (cell_width + _MARGIN)
        top = _MARGIN + index // columns * (cell_height + text_height + 2 * _MARGIN)
        grid.paste(Image.fromarray(image).resize((cell_width, cell_height), Image.Resampling.NEAREST), (left, top))
        # a frame separates white backgrounds from the page
        draw.rectangle((left - 1, top - 1, left + cell_width, top + cell_height), outline=(190, 190, 190))
        for number, line in enumerate(wrapped):
            baseline = top + cell_height + 3 + number * _LINE_HEIGHT + _FONT_SIZE
            start = left + cell_width - line.mask.shape[1] if line.right_to_left else left
            grid.paste("black", (start, baseline - line.ascent), Image.fromarray(line.mask))
    return grid


def viewable_rgb(images: np.ndarray) -> np.ndarray:
    """Returns images [N, H, W, C] as uint8 with 3 channels, see `image_grid`."""
    images = to_uint8(_to_viewable(images))
    if images.shape[-1] == 4:
        return alpha_composite(images, _checkerboard(*images.shape[1:3]))
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def _to_viewable(images: np.ndarray) -> np.ndarray:
    """Returns images [..., H, W, C] with 1, 3 or 4 channels; otherwise channels side by side, [..., H, W·C, 1]."""
    channels = images.shape[-1]
    return images if channels in (1, 3, 4) else np.concatenate(np.split(images, channels, axis=-1), axis=-2)


def _checkerboard(height: int, width: int) -> np.ndarray:
    """Returns a gray checkerboard [height, width, 1], the usual background of transparent images."""
    square = max(1, min(height, width) // _CHECKERBOARD_SQUARES)
    rows, columns = np.indices((height, width)) // square
    return np.where((rows + columns) % 2, 255, 204)[..., None]


def save_png(image: Image.Image | np.ndarray, path: Path, texts: Mapping[str, str] | None = None) -> None:
    """Writes an image as a PNG file, atomically.

    Args:
        image: a PIL image, or uint8 or uint16 [H, W, C], written without loss; for other numbers of channels than 1, 3
            and 4, channels are written side by side in gray.
        path: the file to write; its folder is created.
        texts: to write into the file, by keyword, see `png.with_texts`.

    Raises:
        OSError: the file cannot be written.
    """
    if isinstance(image, np.ndarray):
        image = _to_viewable(image)
        if image.dtype == np.uint16:
            atomic_write(path, png.with_texts(png.encode(image), texts or {}))
            return
        image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    data = io.BytesIO()
    image.save(data, format="PNG")
    atomic_write(path, png.with_texts(data.getvalue(), texts or {}))


def read_png(path: Path) -> np.ndarray:
    """Returns the image [H, W, C] of a file written by `save_png`; 16-bit color is reduced to its upper 8 bits."""
    return decode_png(path.read_bytes())


def decode_png(data: bytes) -> np.ndarray:
    """Returns the image [H, W, C] of the bytes of such a file."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def is_valid_png(path: Path) -> bool:
    """Returns whether a file is a complete PNG with valid checksums."""
    try:
        with Image.open(io.BytesIO(path.read_bytes()), formats=["PNG"]) as image:
            image.verify()
    except BucketError:
        raise
    except (OSError, SyntaxError, ValueError):  # raised by Pillow for missing, truncated or corrupt files
        return False
    return True
