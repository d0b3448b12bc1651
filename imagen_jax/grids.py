"""Grids of pictures with their prompts written under them."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN = 8
TEXT_SIZE = 13


def draw_grid(images: np.ndarray, captions: Sequence[str], columns: int, cell: int = 160) -> Image.Image:
    """One picture of images uint8 [N, H, W, C], C = 1 or 3, enlarged to about ``cell`` pixels, their captions below."""
    images = np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
    height, width = images.shape[1:3]
    # whole multiples, nearest: a person should see the pixels that the model drew, not an interpolation of them
    scale = max(1, round(cell / width))
    wide, high = width * scale, height * scale
    font = ImageFont.load_default(size=TEXT_SIZE)
    lines = [textwrap.wrap(printable(caption), max(8, int(wide / (TEXT_SIZE * 0.52)))) for caption in captions]
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


def printable(text: str) -> str:
    """Text with what a font cannot show (control characters, lone surrogates) as a question mark."""
    return "".join(c if c.isprintable() else "?" for c in text)


def save_png(image: Image.Image | np.ndarray, path: Path) -> None:
    """A picture (PIL, or uint8 [H, W, C] with C = 1 or 3) as a PNG, put in place by a rename: never half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        image.save(unfinished, format="PNG")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
