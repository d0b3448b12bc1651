"""Emoji as a TFDS data set: the bitmaps of Noto Color Emoji, with captions of the names that Unicode gives them.

Pictures are 128×128, RGB. There is one, or one on each of eight grounds, of every character of the font that is a
symbol by itself: no flags, keycaps or skin tones, which are sequences of characters or parts of such. Unicode calls
filled signs black, and outlined ones white, whatever their colour: its BLACK HEART SUIT is red.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from fontTools.ttLib import TTFont, TTLibError
from PIL import Image

from imagen_jax.errors import ConfigError
from imagen_jax.images import png
from imagen_jax.images.array import composite

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
SIZE = 128
# Every tenth is for testing: in the order of code points, so that both parts have faces, animals, food, …
TEST_EVERY = 10

WHITE = {"white": (255, 255, 255)}
COLOURS = WHITE | {
    "black": (20, 20, 20),
    "red": (205, 50, 45),
    "orange": (240, 145, 40),
    "yellow": (245, 215, 70),
    "green": (70, 155, 80),
    "blue": (60, 110, 200),
    "purple": (130, 75, 165),
}
WORDINGS = {
    "white": ("{name}", "an emoji: {name}", "a small picture of {name}"),
    "colours": (
        "{name} on {ground}",
        "an emoji on {ground}: {name}",
        "a small picture of {name}, the ground is {ground}",
    ),
}


class Emoji(tfds.core.GeneratorBasedBuilder):
    """What ``python -m imagen_jax.prepare --dataset=emoji`` prepares; ``font`` is a file of Noto Color Emoji."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (
        tfds.core.BuilderConfig(name="white", description="Each emoji on white."),
        tfds.core.BuilderConfig(name="colours", description="Each emoji on eight colours, which its captions name."),
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
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
                    "captions": tfds.features.Sequence(tfds.features.Text()),
                    "name": tfds.features.Text(),
                    "ground": tfds.features.ClassLabel(names=list(COLOURS)),
                }
            ),
            homepage="https://github.com/googlefonts/noto-emoji",
            license="of the pictures: SIL Open Font License, version 1.1",
            # In the order of code points, neighbours are of one kind: a slice of a split is a theme.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        bitmaps = read_font(self._font)
        test = dict(list(bitmaps.items())[::TEST_EVERY])
        train = {code: bitmap for code, bitmap in bitmaps.items() if code not in test}
        return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

    def _generate_examples(self, bitmaps: Mapping[int, bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
        kind = self.builder_config.name
        grounds = WHITE if kind == "white" else COLOURS
        for code, bitmap in bitmaps.items():
            name = unicodedata.name(chr(code)).lower()
            for place, (ground, colour) in enumerate(grounds.items()):
                yield (
                    code * len(COLOURS) + place,
                    {
                        "image": png.encode(on_ground(bitmap, colour)),
                        "captions": [wording.format(name=name, ground=ground) for wording in WORDINGS[kind]],
                        "name": name,
                        "ground": ground,
                    },
                )


def read_font(path: Path) -> dict[int, bytes]:
    """Code point → PNG file, of the symbols that a font has bitmaps of, in the order of code points.

    Raises UsageError if there is no such font, or it has no bitmaps.
    """
    mend = "install Debian's fonts-noto-color-emoji, or give --font=PATH of a NotoColorEmoji.ttf"
    try:
        font = TTFont(io.BytesIO(path.read_bytes()), lazy=True)
    except OSError as error:
        raise ConfigError(f"there is no font {path} ({error.strerror}): {mend}") from error
    except TTLibError as error:
        raise ConfigError(f"{path} is not a font ({error}): {mend}") from error
    if "CBDT" not in font:
        raise ConfigError(f"the font {path} has no bitmaps (no table CBDT): {mend}")
    bitmaps = max(font["CBDT"].strikeData, key=len)
    glyphs = sorted(font.getBestCmap().items())
    return {code: bitmaps[glyph].imageData for code, glyph in glyphs if is_symbol(code) and glyph in bitmaps}


def is_symbol(code: int) -> bool:
    """Whether a code point has a name and is a symbol by itself; two regional indicators make a flag."""
    character = chr(code)
    return unicodedata.category(character) == "So" and not unicodedata.name(character).startswith("REGIONAL INDICATOR")


def on_ground(bitmap: bytes, colour: tuple[int, int, int]) -> np.ndarray:
    """The middle of a bitmap of 136×128 (width × height), whose sides are empty, over a colour: uint8 [128, 128, 3]."""
    picture = Image.open(io.BytesIO(bitmap)).convert("RGBA")
    left, top = ((side - SIZE) // 2 for side in picture.size)
    square = np.asarray(picture.crop((left, top, left + SIZE, top + SIZE)))
    return composite(square, np.array(colour))
