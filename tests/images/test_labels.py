import logging

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from imagen_jax.images import labels
from imagen_jax.images.grid import _MARGIN, image_grid
from imagen_jax.images.labels import displayable, font_families, render_lines

SIZE, WIDTH = 13, 160


@pytest.fixture
def fonts(monkeypatch):
    """Returns a function that sets which fonts there are beside the default one."""

    def set_fonts(*paths):
        for function in (labels._find_font, labels._other_fonts, labels._warn_missing):
            function.cache_clear()
        monkeypatch.setattr(labels.font_manager, "findSystemFonts", lambda: [str(path) for path in paths])
        monkeypatch.setattr(labels, "FONT_PACKAGES", ())

    set_fonts()
    yield set_fonts
    monkeypatch.undo()
    for function in (labels._find_font, labels._other_fonts):
        function.cache_clear()


def rectangle(width, height):
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for point in ((100, height), (100 + width, height), (100 + width, 0)):
        pen.lineTo(point)
    pen.closePath()
    return pen.glyph()


def write_font(path, characters):
    """Writes a font whose glyphs are rectangles, each wider than the one before."""
    names = [".notdef", *(f"u{ord(c):X}" for c in characters)]
    builder = FontBuilder(unitsPerEm=1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"u{ord(c):X}" for c in characters})
    builder.setupGlyf({name: rectangle(100 + 100 * i, 700) for i, name in enumerate(names)})
    builder.setupHorizontalMetrics({name: (1000, 100) for name in names})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


def ink(text):
    """Returns what is drawn of a text of one line, without the space around it."""
    (line,) = render_lines(text, 1000, SIZE, 1)
    mask = line.mask
    return mask[np.ix_(mask.any(1), mask.any(0))]


@pytest.mark.parametrize("text", ["Löwe", "Привет", "Ἑλλάς", "שלום", "مرحبا", "ქართული", "a\u200db ❤\ufe0f"])
def test_the_default_font_has_many_scripts(fonts, text):
    assert displayable(text) == text
    assert font_families(text) == ["DejaVu Sans"]
    assert len({ink(character).tobytes() for character in set(text) if character.isalpha()}) > 1


def test_other_fonts_have_the_rest(fonts, tmp_path):
    fonts(write_font(tmp_path / "other.ttf", "空"), write_font(tmp_path / "han.ttf", "狐狗"))
    assert displayable("狐狗") == "狐狗"
    drawn = [ink(text) for text in ("狐", "狗", "狐狗", "[U+72D0]", "\ufffd")]
    assert len({image.tobytes() for image in drawn}) == len(drawn)
    assert font_families("a 狐") == ["DejaVu Sans", "han"]
    assert font_families("空 狐") == ["DejaVu Sans", "other", "han"]


def test_missing_characters_are_code_points(fonts, caplog):
    with caplog.at_level(logging.WARNING):
        assert displayable("a 狐, \U0001f98a") == "a [U+72D0], [U+1F98A]"
        assert displayable("狗") == "[U+72D7]"
    assert caplog.text.count("imagen_jax[fonts]") == 1
    np.testing.assert_array_equal(ink("狐"), ink("[U+72D0]"))


def test_unusable_fonts_are_passed_over(fonts, tmp_path):
    (tmp_path / "damaged.ttf").write_bytes(b"not a font")
    (tmp_path / "NotoColorEmoji.ttf").write_bytes(write_font(tmp_path / "a.ttf", "狐").read_bytes())
    fonts(tmp_path / "damaged.ttf", tmp_path / "absent.otf", tmp_path / "font.pcf", tmp_path / "NotoColorEmoji.ttf")
    assert displayable("狐") == "[U+72D0]"
    fonts(tmp_path / "damaged.ttf", tmp_path / "a.ttf")
    assert displayable("狐") == "狐"


def test_right_to_left_begins_at_the_right(fonts):
    first, whole = ink("ש"), ink("ש ל")
    np.testing.assert_array_equal(whole[-len(first) :, -first.shape[1] :], first)
    first, whole = ink("a"), ink("a l")
    np.testing.assert_array_equal(whole[-len(first) :, : first.shape[1]], first)


def test_arabic_letters_join(fonts):
    joined, apart = ink("بب"), ink("ب\u200cب")  # a non-joiner between
    assert joined.shape[1] < apart.shape[1]


def test_the_first_letter_gives_the_direction(fonts):
    texts = ["a קטה", "קטה a", "1. קטה", "(قطة)", "123"]
    lines = [render_lines(text, 1000, SIZE, 1)[0] for text in texts]
    assert [line.right_to_left for line in lines] == [False, True, True, True, False]
    # a later line of the same text runs as the first, though it begins with another letter
    lines = render_lines("קטה " * 8 + "abc " * 8, WIDTH, SIZE, 9)
    assert len(lines) > 2 and all(line.right_to_left for line in lines)


def test_grids_align_lines_by_direction(fonts):
    images = np.full((2, 8, 8, 3), 255, np.uint8)
    grid = np.asarray(image_grid(images, ["fox", "שלום"], columns=2, cell=64))
    below = grid[_MARGIN + 64 + 2 :].min(axis=(0, 2))
    left, right = below[_MARGIN : _MARGIN + 64], below[2 * _MARGIN + 64 : 2 * _MARGIN + 128]
    assert left[:8].min() < 100 and left[40:].min() == 255
    assert right[-8:].min() < 100 and right[:20].min() == 255


@pytest.mark.parametrize("text", ["many words " * 20, "x" * 400, "שלום עולם " * 20, "é" * 300, "e\u0301" * 300])
def test_lines_fit(fonts, text):
    lines = render_lines(text, WIDTH, SIZE, 12)
    assert 5 < len(lines) <= 12
    assert max(line.mask.shape[1] for line in lines) <= WIDTH + 2
    assert all(line.mask.any() for line in lines)


def test_marks_stay_with_their_letters():
    assert list(labels._clusters("e\u0301a\u200db")) == ["e\u0301", "a\u200db"]
    assert list(labels._clusters("a[U+65E5][U+1F98A][c")) == ["a", "[U+65E5]", "[U+1F98A]", "[", "c"]
    lines = list(labels._wrap("e\u0301" * 9, lambda line: len(line) <= 5))
    assert "".join(lines) == "e\u0301" * 9 and all(line.startswith("e") for line in lines)


def test_long_texts_are_truncated(fonts):
    lines = render_lines("fox " * 10**6, WIDTH, SIZE, 3)
    assert len(lines) == 3
    np.testing.assert_array_equal(lines[0].mask, render_lines("fox " * 3000, WIDTH, SIZE, 3)[0].mask)


@pytest.mark.parametrize(
    "text, shown", [("a\x1b[0m\0", "a?[0m?"), ("\u202eabc", "?abc"), ("\ud83d", "?"), ("a\U000e0100", "a")]
)
def test_unprintable_characters(fonts, text, shown):
    assert displayable(text) == shown


def test_fonts_of_the_extra():
    pytest.importorskip("manimgx_fonts")
    pytest.importorskip("noto_cjk_sans_otc")
    texts = ["狐", "日本語", "한국어", "हिन्दी", "ไทย", "বাংলা", "தமிழ்", "አማርኛ", "🦊"]
    assert [displayable(text) for text in texts] == texts
    assert len({ink(text).tobytes() for text in [*texts, "狗"]}) == len(texts) + 1


@pytest.mark.parametrize("joiner", ["\u200d", "\ufe0f", "\ufe0f\u200d"])
def test_joiners_between_fonts_are_left_out(fonts, tmp_path, joiner):
    """Matplotlib warns, which fails a test, where a group of joined characters is in no font as a whole."""
    write_font(tmp_path / "cats.ttf", "狐猫")
    fonts(tmp_path / "cats.ttf")
    for text in (f"?{joiner}狐", f"狐{joiner}a", f"狐{joiner}猫", f"狐{joiner}", joiner):
        assert joiner not in displayable(text)
        render_lines(text, WIDTH, SIZE, 2)
    assert displayable("می\u200cخواهم") == "می\u200cخواهم"
