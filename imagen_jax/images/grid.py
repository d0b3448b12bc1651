"""Grids of pictures with their prompts written under them."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imagen_jax.images import png
from imagen_jax.images.array import composite, to_8_bits
from imagen_jax.io.atomic import write_whole
from imagen_jax.io.text import printable

MARGIN = 8
TEXT_SIZE = 13
MAX_LINES = 12  # of a caption: the rest is not shown
CHECKS = 8  # of a checkerboard, along the shorter side of a picture


def draw_grid(images: np.ndarray, captions: Sequence[str], columns: int, cell: int = 160) -> Image.Image:
    """One picture of images [N, H, W, C], enlarged to about ``cell`` pixels, captions below.

    Of 16 bits the upper 8 are shown, of RGBA what it makes of a checkerboard; other numbers of channels as of
    ``viewable``.
    """
    images = to_8_bits(viewable(images))
    if images.shape[-1] == 1:
        images = np.repeat(images, 3, axis=-1)
    elif images.shape[-1] == 4:
        images = composite(images, checkerboard(*images.shape[1:3]))
    height, width = images.shape[1:3]
    # whole multiples, nearest: a person should see the pixels that the model drew, not an interpolation of them
    scale = max(1, round(cell / width))
    wide, high = width * scale, height * scale
    font = ImageFont.load_default(size=TEXT_SIZE)
    in_a_line = max(8, int(wide / (TEXT_SIZE * 0.52)))
    lines = [
        textwrap.wrap(printable(caption), in_a_line, max_lines=MAX_LINES, placeholder=" ...") for caption in captions
    ]
    text_height = (TEXT_SIZE + 3) * max((len(wrapped) for wrapped in lines), default=0)
    rows = -(-len(images) // columns)
    sheet = Image.new(
        "RGB",
        (columns * (wide + MARGIN) + MARGIN, rows * (high + text_height + 2 * MARGIN) + MARGIN),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    for index, (image, wrapped) in enumerate(zip(images, lines, strict=True)):
        left = MARGIN + index % columns * (wide + MARGIN)
        top = MARGIN + index // columns * (high + text_height + 2 * MARGIN)
        sheet.paste(Image.fromarray(image).resize((wide, high), Image.Resampling.NEAREST), (left, top))
        # a frame, so that a white background does not run into the page
        draw.rectangle((left - 1, top - 1, left + wide, top + high), outline=(190, 190, 190))
        for line, text in enumerate(wrapped):
            draw.text((left, top + high + 3 + line * (TEXT_SIZE + 3)), text, fill="black", font=font)
    return sheet


def viewable(images: np.ndarray) -> np.ndarray:
    """Images [..., H, W, C] as gray, RGB or RGBA, C = 1, 3 or 4; other numbers of channels side by side, in gray."""
    channels = images.shape[-1]
    return images if channels in (1, 3, 4) else np.concatenate(np.split(images, channels, axis=-1), axis=-2)


def checkerboard(height: int, width: int) -> np.ndarray:
    """The ground [height, width, 1] on which people expect to see what is transparent."""
    square = max(1, min(height, width) // CHECKS)
    rows, columns = np.indices((height, width)) // square
    return np.where((rows + columns) % 2, 255, 204)[..., None]


def save_png(image: Image.Image | np.ndarray, path: Path) -> None:
    """A picture as a PNG, put in place by a rename: never half written.

    Args:
        image: of PIL, or uint8 or uint16 [H, W, C]; all their bits are kept. PNG has room for gray, RGB and RGBA; other
            numbers of channels are laid out as of ``viewable``.
        path: where it goes.
    """
    if isinstance(image, np.ndarray):
        image = viewable(image)
        if image.dtype == np.uint16:
            write_whole(path, png.encode(image))
            return
        image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    data = io.BytesIO()
    image.save(data, format="PNG")
    write_whole(path, data.getvalue())


def read_png(path: Path) -> np.ndarray:
    """A picture of a file of ``save_png`` [H, W, C], as ``draw_grid`` takes it: of colours of 16 bits the upper 8."""
    with Image.open(path, formats=["PNG"]) as image:
        pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def is_whole_png(path: Path) -> bool:
    """Whether a file is a PNG with all its parts, each of them as its checksum says."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError):  # what Pillow raises of a file that is missing, cut or spoilt
        return False
    return True
