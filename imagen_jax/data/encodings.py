"""Text from the bytes of files: UTF-8, or UTF-16 or UTF-32 if it begins with their byte order mark.

Other encodings cannot be told apart: their text is an error, never guessed at or trained on with replacement
characters.
"""

from __future__ import annotations

import codecs
import re
import unicodedata

# UTF-32's mark first: it begins with that of UTF-16
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_MIN_CONTROLS = 3  # a few may be slips in a short caption
FIX = "save it as UTF-8, for example by `iconv -f ENCODING -t UTF-8`"

# Encodings whose bytes are ASCII: the escape sequences of ISO-2022 (JP, KR, CN) and HZ, which no caption has, and
# base64 after a plus in UTF-7, which captions may resemble.
_ISO_2022 = re.compile(rb"\x1b\$([@AB]|[()*+][A-Z])")
_HZ = re.compile(rb"~\{([!-w][!-~])+~\}")
_UTF_7_MARK = re.compile(r"\+/v[89+/]")
_UTF_7 = re.compile(r"\+([A-Za-z0-9+/]{3,})(-[a-z])?")
_WORD = r"([A-Z]?[a-z]*[0-9]*|[A-Z]+[0-9]*|[0-9]+[a-z]*|([A-Z]?[a-z]{2,}){2,})"
_WORDS = re.compile(rf"{_WORD}([+/]+{_WORD})*")
# first words of the names of characters, by script
_SCRIPTS = {
    **{name: name for name in ("LATIN", "GREEK", "CYRILLIC", "HEBREW", "ARABIC", "DEVANAGARI", "THAI", "HANGUL")},
    **dict.fromkeys(("CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC"), "CJK"),
}
_LARGE_SCRIPTS = ("CJK", "HANGUL")  # of which any three letters may be a character


class EncodingError(ValueError):
    """Text in another encoding; the message continues a sentence that begins with the file's name."""


def decode_text(data: bytes, is_complete: bool = True) -> str:
    """Returns the text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Args:
        data: the bytes of a file.
        is_complete: False if they are the beginning of a longer file, which may end within a character.

    Raises:
        EncodingError: the text is in another encoding, or nothing but NULs.
    """
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and _lacks_mark(data):
        raise EncodingError(f"looks like UTF-16 without a byte order mark, about every second byte is 0: {FIX}")
    try:
        text = codecs.getincrementaldecoder(encoding)("strict").decode(data, is_complete)
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start : error.start + 1].hex()
        name = "UTF-8" if encoding.startswith("utf-8") else encoding.upper()
        raise EncodingError(
            f"is not {name} text, byte 0x{byte} at position {error.start:,}, line {line:,}: {FIX}"
        ) from error
    if "\0" in text and not text.replace("\0", "").strip():
        raise EncodingError("has nothing but NUL bytes, as a crash may leave a file: write it again")
    if encoding != "utf-8":
        return text
    ascii_encoding = _ascii_encoding(data)
    if ascii_encoding:
        raise EncodingError(f"is text in {ascii_encoding}, not UTF-8: {FIX}")
    if _is_mostly_control(text):
        raise EncodingError(f"looks like UTF-16 or UTF-32 without a byte order mark, or is not text: {FIX}")
    return text


def _is_mostly_control(text: str) -> bool:
    """Returns whether a third of a text, but for NULs at its end, are control characters.

    Of Cyrillic, Greek or Arabic letters in UTF-16, every second byte is one; of UTF-32, three of four are NULs.
    """
    counted = text.rstrip("\0")
    controls = sum(character < " " and not character.isspace() for character in counted)
    return controls >= _MIN_CONTROLS and 3 * controls >= len(counted)


def _lacks_mark(data: bytes) -> bool:
    """Returns whether many bytes are 0, nearly all of them at even or at odd positions: UTF-16 with Latin letters."""
    even, odd = data[0::2].count(0), data[1::2].count(0)
    return len(data) >= 4 and 4 * (even + odd) >= len(data) and min(even, odd) <= 0.1 * max(even, odd)


def _ascii_encoding(data: bytes) -> str:
    """Returns the encoding of text in other scripts whose bytes are ASCII; "" if it is none of them."""
    if _ISO_2022.search(data):
        return "ISO-2022"
    if not data.isascii():
        return ""
    if _HZ.search(data) and _decodes(data, "hz"):
        return "HZ"
    return "UTF-7" if b"+" in data and _decodes(data, "utf-7") and _is_utf_7(data.decode()) else ""


def _decodes(data: bytes, encoding: str) -> bool:
    """Returns whether data are the beginning of text in an encoding."""
    try:
        codecs.getincrementaldecoder(encoding)("strict").decode(data)
    except UnicodeDecodeError:
        return False
    return True


def _is_utf_7(text: str) -> bool:
    """Returns whether text that can be decoded as UTF-7 is meant as such: "caf+AOk" is, and "a cat+dog" is not.

    A word or number after a plus may be base64 of a Chinese or Korean character by chance, some abbreviations of a
    letter with an accent. They count if the text is nothing else, or within a word, as in "sch+APY-n".
    """
    if _UTF_7_MARK.match(text):
        return True
    for run in _UTF_7.finditer(text):
        try:
            characters = f"+{run[1]}-".encode().decode("utf-7")
        except UnicodeDecodeError:
            continue
        is_all = text.strip() == f"+{run[1]}-" and _script(characters) != ""
        if is_all or (_is_accented(run, characters) if _WORDS.fullmatch(run[1]) else _is_foreign(characters)):
            return True
    return False


def _is_accented(run: re.Match[str], characters: str) -> bool:
    """Returns whether a word in base64 may be an accented letter, with another letter after it."""
    return run[2] is not None and all("À" <= character <= "ÿ" for character in characters)


def _is_foreign(characters: str) -> bool:
    """Returns whether characters are text of one script, or punctuation or emoji alone."""
    script = _script(characters)
    return script is not None and (script not in _LARGE_SCRIPTS or len(characters) > 1)


def _script(characters: str) -> str | None:
    """Returns the script of characters, "" for punctuation and emoji alone; None if it is none or there are several."""
    scripts = set()
    for character in characters:
        name = unicodedata.name(character, "").split(" ")[0]
        if name in _SCRIPTS and not "\u3400" <= character < "\u4e00":  # rare Chinese characters
            scripts.add(_SCRIPTS[name])
        elif not ("\u2000" <= character < "\u2070" or character >= "\U0001f000" or character.isascii()):
            return None
    return scripts.pop() if len(scripts) == 1 else None if scripts else ""
