"""Emoji as a TFDS data set: the bitmaps of Noto Color Emoji, with their Unicode names as captions.

Images are 128×128 RGB: one, or one on each of eight backgrounds, for every character of the font that is a symbol by
itself. Flags, keycaps and skin tones are left out, because they are sequences of characters or parts of such. Unicode
calls filled signs black and outlined ones white, whatever their color: its BLACK HEART SUIT is red.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from imagen_jax.errors import ConfigError, require
from imagen_jax.images import png
from imagen_jax.images.array import alpha_composite

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")

_SIZE = 128
# Every tenth image, in the order of code points, is a test image, so that both splits have faces, animals, food, …
_TEST_EVERY = 10

_WHITE = {"white": (255, 255, 255)}
_COLORS = _WHITE | {
    "black": (20, 20, 20),
    "red": (205, 50, 45),
    "orange": (240, 145, 40),
    "yellow": (245, 215, 70),
    "green": (70, 155, 80),
    "blue": (60, 110, 200),
    "purple": (130, 75, 165),
}
_TEMPLATES = {
    "white": ("{name}", "an emoji: {name}", "a small picture of {name}"),
    "colours": (
        "{name} on {ground}",
        "an emoji on {ground}: {name}",
        "a small picture of {name}, the ground is {ground}",
    ),
}


class Emoji(tfds.core.GeneratorBasedBuilder):
    """Builds the data sets `emoji/white` and `emoji/colours`, see `imagen prepare`.

    Args:
        font: the font file of Noto Color Emoji.
        **arguments: arguments of a TFDS builder.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (
        tfds.core.BuilderConfig(name="white", description="Each emoji on white."),
        tfds.core.BuilderConfig(
            name="colours", description="Each emoji on eight background colors, which its captions name."
        ),
    )

    def __init__(self, font: Path = FONT, **arguments: Any) -> None:
        self._font = font
        super().__init__(**arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(_SIZE, _SIZE, 3), encoding_format="png"),
                    "captions": tfds.features.Sequence(tfds.features.Text()),
                    "name": tfds.features.Text(),
                    "ground": tfds.features.ClassLabel(names=list(_COLORS)),
                }
            ),
            homepage="https://github.com/googlefonts/noto-emoji",
            license="of the images: SIL Open Font License, version 1.1",
            # In the order of code points, neighbors are of one kind: a slice of a split is a theme.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        bitmaps = _read_font(self._font)
        test = dict(list(bitmaps.items())[::_TEST_EVERY])
        train = {code: bitmap for code, bitmap in bitmaps.items() if code not in test}
        return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

    def _generate_examples(self, bitmaps: Mapping[int, bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config.name
        backgrounds = _WHITE if config == "white" else _COLORS
        for code, bitmap in bitmaps.items():
            name = unicodedata.name(chr(code)).lower()
            for i, (background, color) in enumerate(backgrounds.items()):
                yield (
                    code * len(_COLORS) + i,
                    {
                        "image": png.encode(_on_background(bitmap, color)),
                        "captions": [text.format(name=name, ground=background) for text in _TEMPLATES[config]],
                        "name": name,
                        "ground": background,
                    },
                )


def _read_font(path: Path) -> dict[int, bytes]:
    """Returns code point -> PNG file for the symbols that a font has bitmaps for, in the order of code points.

    Raises:
        ConfigError: there is no such font, it has no bitmaps, or fontTools is not installed.
    """
    ttlib = require("fontTools.ttLib", "demo")
    hint = "install Debian's fonts-noto-color-emoji, or give --font=PATH of a NotoColorEmoji.ttf"
    try:
        font = ttlib.TTFont(io.BytesIO(path.read_bytes()), lazy=True)
    except OSError as error:
        raise ConfigError(f"font {path} cannot be read ({error.strerror}): {hint}") from error
    except ttlib.TTLibError as error:
        raise ConfigError(f"{path} is not a font ({error}): {hint}") from error
    if "CBDT" not in font:
        raise ConfigError(f"the font {path} has no bitmaps (no table CBDT): {hint}")
    bitmaps = max(font["CBDT"].strikeData, key=len)
    glyphs = sorted(font.getBestCmap().items())
    return {code: bitmaps[glyph].imageData for code, glyph in glyphs if _is_symbol(code) and glyph in bitmaps}


def _is_symbol(code: int) -> bool:
    """Returns whether a code point has a name and is a symbol by itself; two regional indicators make a flag."""
    character = chr(code)
    return unicodedata.category(character) == "So" and not unicodedata.name(character).startswith("REGIONAL INDICATOR")


def _on_background(bitmap: bytes, color: tuple[int, int, int]) -> np.ndarray:
    """Composites the center of a bitmap on a color, uint8 [128, 128, 3]; bitmaps are 136 wide with empty sides."""
    image = Image.open(io.BytesIO(bitmap)).convert("RGBA")
    left, top = ((side - _SIZE) // 2 for side in image.size)
    square = np.asarray(image.crop((left, top, left + _SIZE, top + _SIZE)))
    return alpha_composite(square, np.array(color))
