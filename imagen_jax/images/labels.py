"""Text in pictures, in any script: fonts that have its characters, shaping, both directions, and lines of a width.

Matplotlib lays text out (by libraqm, HarfBuzz and SheenBidi, which its wheels contain) and combines several fonts. Its
DejaVu Sans has Latin, Greek, Cyrillic, Hebrew, Arabic and others; characters that it lacks are looked for in the
packages of the extra `fonts`, then in the fonts of the system. One that no font has is written as its code point.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

FONT_PACKAGES = ("manimgx_fonts", "noto_cjk_sans_otc")  # modules of the extra `fonts`; they hold font files
_DEFAULT_FONT = "fonts/ttf/DejaVuSans.ttf"  # below Matplotlib's data
_SUFFIXES = {".ttf", ".ttc", ".otf", ".otc"}
_DPI = 72  # so that points are pixels
_ELLIPSIS = " ..."
_RIGHT_TO_LEFT_MARK = "\u200f"
# They have no glyph. Joiners and marks of direction belong to the spelling; overrides and isolates could disguise text.
_CODE_POINT = re.compile(r"(\[U\+[0-9A-F]{4,6}\])")  # as `displayable` writes it
_JOINERS = {"\u200c", "\u200d", *map(chr, range(0xFE00, 0xFE10))}  # shape what is beside them
_INVISIBLE = {"\u200b", "\u200e", _RIGHT_TO_LEFT_MARK, *_JOINERS}
_IGNORED = "".join(_INVISIBLE)

logger = logging.getLogger(__name__)


class Line(NamedTuple):
    """A line of text as it is drawn.

    Attributes:
        mask: uint8 [h, w], 255 where there is ink.
        ascent: rows above the baseline.
        right_to_left: whether it begins at the right.
    """

    mask: np.ndarray
    ascent: int
    right_to_left: bool


def render_lines(text: str, width: int, size: int, max_lines: int) -> list[Line]:
    """Returns a text as lines that are not wider than `width`; unprintable characters are question marks.

    Args:
        text: any text.
        width: in pixels.
        size: of the font, in pixels.
        max_lines: the text is truncated beyond.
    """
    text = " ".join(displayable(text[: max_lines * width]).split())
    right_to_left = _is_right_to_left(text)
    font = _load_fonts(text, size)
    lines = list(itertools.islice(_wrap(text, lambda line: _measure(font, line) <= width), max_lines + 1))
    if len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and _measure(font, last + _ELLIPSIS) > width:
            last = last[:-1].rstrip()
        lines = [*lines[: max_lines - 1], last + _ELLIPSIS]
    return [_draw(font, line, right_to_left) for line in lines]


def font_families(text: str) -> list[str]:
    """Returns the names of fonts that Matplotlib can draw a text with, in the order to try them."""
    paths = _font_paths(text)
    for path in paths[1:]:
        font_manager.fontManager.addfont(path)
    return [_open(path).family_name for path in paths]


def displayable(text: str) -> str:
    """Returns text that can be drawn: unprintable characters are question marks, those that no font has code points.

    Logs once in a process if there are any of the latter.
    """
    text = "".join(c if c.isprintable() or c in _INVISIBLE or c.isspace() else "?" for c in text)
    text = text.translate(dict.fromkeys(range(0xE0100, 0xE01F0)))  # variants of ideographs, without a glyph
    missing = sorted({c for c in text if not _is_ignorable(c) and _find_font(c) is None})
    if missing:
        _warn_missing()
        text = text.translate({ord(c): f"[U+{ord(c):04X}]" for c in missing})
    return _without_useless_joiners(text)


def _without_useless_joiners(text: str) -> str:
    """Returns a text without the joiners that a font lacks, or that are between characters of two fonts.

    Such a group is laid out in one font, which has not all of it: even known characters would be boxes.
    """
    kept = ""
    for index, character in enumerate(text):
        if character in _JOINERS:
            before, after = kept.rstrip(_IGNORED)[-1:], text[index:].lstrip(_IGNORED)[:1]
            paths = {_find_font(c) for c in (before, after) if c and not c.isspace()}
            path = paths.pop() if len(paths) == 1 else None
            if path is None or not _open(path).get_char_index(ord(character)):
                continue
        kept += character
    return kept


@functools.cache
def _warn_missing() -> None:
    logger.warning(
        "no font has some characters of the labels: their code points are written instead. Install fonts by "
        "pip install 'imagen_jax[fonts]', or for the system, such as Debian's fonts-noto-core and fonts-noto-cjk"
    )


def _is_ignorable(character: str) -> bool:
    """Returns whether a character needs no glyph."""
    return character in _INVISIBLE or character.isspace()


def _is_right_to_left(text: str) -> bool:
    """Returns whether a text's first letter is of a script that runs from right to left (UAX #9, rules P2 and P3)."""
    kinds = (unicodedata.bidirectional(c) for c in text)
    return next((kind for kind in kinds if kind in ("L", "R", "AL")), "L") != "L"


def _font_paths(text: str) -> list[str]:
    """Returns the fonts that have all characters of a text, the default one first."""
    paths = [_default_font()]
    for character in dict.fromkeys(text):
        path = None if _is_ignorable(character) else _find_font(character)
        if path is not None and path not in paths:
            paths.append(path)
    return paths


@functools.cache
def _find_font(character: str) -> str | None:
    """Returns the first font that has a character; None if there is none."""
    return next((path for path in _candidates() if _open(path).get_char_index(ord(character))), None)


def _candidates() -> Iterator[str]:
    """Yields the paths of all usable fonts, in the order to try them."""
    yield _default_font()
    yield from (path for path in _other_fonts() if _is_usable(path))


def _default_font() -> str:
    return str(Path(matplotlib.get_data_path()) / _DEFAULT_FONT)


@functools.cache
def _other_fonts() -> tuple[str, ...]:
    """Returns the paths of the fonts of packages and then of the system, plain ones of broad families first."""
    return (*_by_preference(_package_fonts()), *_by_preference(font_manager.findSystemFonts()))


def _package_fonts() -> list[str]:
    """Returns the font files of the packages that are installed; none is imported."""
    specs = [importlib.util.find_spec(name) for name in FONT_PACKAGES]
    folders = [Path(folder) for spec in specs if spec for folder in spec.submodule_search_locations or ()]
    return [str(path) for folder in folders for path in folder.rglob("*")]


def _by_preference(paths: Iterable[str]) -> list[str]:
    """Returns font files in the order to try them, without those with colors: they may have no outlines."""
    paths = [
        path for path in paths if Path(path).suffix.lower() in _SUFFIXES and "color" not in Path(path).name.lower()
    ]

    def key(path: str) -> tuple[bool, bool, bool, str]:
        name = Path(path).stem.lower()
        is_plain = not any(style in name for style in ("bold", "italic", "oblique", "light", "thin", "black", "mono"))
        return not is_plain, "sans" not in name, "noto" not in name, path

    return sorted(paths, key=key)


@functools.cache
def _is_usable(path: str) -> bool:
    """Returns whether a file is a font with outlines."""
    try:
        return bool(_open(path).scalable)
    except (OSError, RuntimeError, ValueError):
        return False


@functools.cache
def _open(path: str) -> FT2Font:
    return FT2Font(path)


def _load_fonts(text: str, size: int) -> FT2Font:
    """Returns the fonts for a text as one, of a size in pixels; of this thread alone, as Matplotlib's are."""
    font = font_manager.get_font(_font_paths(text))
    font.set_size(size, _DPI)
    return font


def _measure(font: FT2Font, text: str) -> int:
    """Returns the width of a text in pixels."""
    font.set_text(text)
    return font.get_width_height()[0] // 64


def _draw(font: FT2Font, text: str, right_to_left: bool) -> Line:
    """Returns a line; in a text from right to left, one that begins with other letters runs so too."""
    font.set_text(_RIGHT_TO_LEFT_MARK + text if right_to_left else text)
    font.draw_glyphs_to_bitmap(antialiased=True)
    mask = np.array(font.get_image(), np.uint8)
    return Line(mask, len(mask) - font.get_descent() // 64, right_to_left)


def _wrap(text: str, fits: Callable[[str], bool]) -> Iterator[str]:
    """Yields the lines of a text: broken at spaces, and within words that do not fit into a line."""
    line = ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if fits(joined):
            line = joined
            continue
        if line:
            yield line
        line = ""
        for cluster in _clusters(word):
            if line and not fits(line + cluster):
                yield line
                line = ""
            line += cluster
    if line:
        yield line


def _clusters(word: str) -> Iterator[str]:
    """Yields the parts of a word that a line may end after: letters with their marks, and what joiners join."""
    cluster = ""
    for part in _CODE_POINT.split(word):
        for unit in [part] if _CODE_POINT.fullmatch(part) else part:
            joins = unit in _INVISIBLE or unicodedata.category(unit[0]).startswith("M") or cluster.endswith("\u200d")
            if cluster and not joins:
                yield cluster
                cluster = ""
            cluster += unit
    yield cluster
