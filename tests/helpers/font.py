"""A font with color bitmaps, after the specification of the OpenType tables CBDT and CBLC."""

import io
import struct

import numpy as np
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib.tables.DefaultTable import DefaultTable
from PIL import Image

from imagen_jax.datasets.builders.emoji import Emoji

WIDTH, HEIGHT = 136, 128
SIDE = 4  # empty columns at the left and right of a bitmap


def bitmap(color):
    """Returns a PNG file with a palette: a disc on a transparent background that touches the upper and left edges."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    inside = (x - SIDE - 48) ** 2 + (y - 48) ** 2 <= 48**2
    image = Image.fromarray(inside.astype(np.uint8)).convert("P")
    image.putpalette([0, 0, 0, *color])
    file = io.BytesIO()
    image.save(file, format="PNG", transparency=0)
    return file.getvalue()


FRUITS = {code: bitmap((200, 10 * i, 30)) for i, code in enumerate(range(0x1F345, 0x1F351))}  # tomato, aubergine, …


def write_font(path, bitmaps):
    """Writes a font with a glyph for each code point; code points that map to None have no bitmap and come first."""
    codes = sorted(bitmaps, key=lambda code: (bitmaps[code] is not None, code))
    glyphs = {code: f"glyph{code:X}" for code in codes}
    builder = FontBuilder(unitsPerEm=128, isTTF=True)
    builder.setupGlyphOrder([".notdef", *glyphs.values()])
    builder.setupCharacterMap(glyphs)
    builder.setupPost()
    drawn = [bitmaps[code] for code in codes if bitmaps[code] is not None]
    if drawn:
        for tag, data in zip(("CBDT", "CBLC"), tables(drawn, first=len(codes) - len(drawn) + 1), strict=True):
            table = DefaultTable(tag)
            table.data = data
            builder.font[tag] = table
    builder.save(path)
    return path


def tables(files, first):
    """Returns tables (CBDT, CBLC) for PNG files of the glyphs from `first`: images in format 17, index in format 1."""
    version = struct.pack(">HH", 3, 0)
    images = [struct.pack(">BBbbBL", HEIGHT, WIDTH, 0, 101, WIDTH, len(file)) + file for file in files]
    ends = np.cumsum([0, *map(len, images)])
    last = first + len(files) - 1
    index = struct.pack(">HHL", 1, 17, len(version)) + b"".join(struct.pack(">L", end) for end in ends)
    array = struct.pack(">HHL", first, last, 8)
    lines = struct.pack(">bbBbbbbbbbbb", 101, -27, WIDTH, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    size = struct.pack(">LLLL", 8 + 48, len(array + index), 1, 0) + lines * 2
    size += struct.pack(">HHBBBb", first, last, 109, 109, 32, 1)
    return version + b"".join(images), version + struct.pack(">L", 1) + size + array + index


def prepare_emoji(folder, kind, bitmaps=FRUITS):
    """Prepares an emoji data set below a folder; returns the folder of its versions."""
    font = write_font(folder / "emoji.ttf", bitmaps)
    Emoji(font=font, data_dir=folder, config=kind, file_format="array_record").download_and_prepare()
    return folder / "emoji" / kind
