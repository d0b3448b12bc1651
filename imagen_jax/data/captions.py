"""From the bytes of caption files to captions, in folders as in tar shards.

Text is UTF-8, or UTF-16 or UTF-32 if it begins with their byte order mark. Other encodings cannot be told apart: their
text is an error, never guessed at or trained on with replacement characters.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

CAPTION_FILES = ("lines", "whole")

# UTF-32's mark first: it begins with that of UTF-16
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
# The escape sequences of ISO-2022 (JP, KR, CN), whose bytes are ASCII; no caption has them.
_ISO_2022 = re.compile(rb"\x1b\$([@AB]|[()*+][A-Z])")
_MIN_CONTROLS = 3  # a few may be slips in a short caption
_FIX = "save it as UTF-8, for example by `iconv -f ENCODING -t UTF-8`"
# blank lines between others, headings and list items of Markdown, lines that end within a sentence
_PARAGRAPHS = re.compile(r"\S[ \t]*\n[ \t]*\n\s*\S|^#{1,6} \S|^\s*([-*•]|\d+\.) \S|[,;]\s*\n\s*\S", re.MULTILINE)


class EncodingError(ValueError):
    """Text in another encoding; the message continues a sentence that begins with the file's name."""


def decode_text(data: bytes, is_complete: bool = True) -> str:
    """Returns the text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Args:
        data: the bytes of a file.
        is_complete: False if they are the beginning of a longer file, which may end within a character.

    Raises:
        EncodingError: the text is in another encoding.
    """
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and _lacks_mark(data):
        raise EncodingError(f"looks like UTF-16 without a byte order mark, about every second byte is 0: {_FIX}")
    try:
        text = codecs.getincrementaldecoder(encoding)("strict").decode(data, is_complete)
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start : error.start + 1].hex()
        name = "UTF-8" if encoding.startswith("utf-8") else encoding.upper()
        raise EncodingError(
            f"is not {name} text, byte 0x{byte} at position {error.start:,}, line {line:,}: {_FIX}"
        ) from error
    if encoding == "utf-8" and _ISO_2022.search(data):
        raise EncodingError(f"is text in ISO-2022, not UTF-8: {_FIX}")
    if encoding == "utf-8" and _is_mostly_control(text):
        raise EncodingError(f"looks like UTF-16 or UTF-32 without a byte order mark, or is not text: {_FIX}")
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


def split_captions(
    text: str, caption_files: str, split_lines: Callable[[str], list[str]] = str.splitlines
) -> tuple[str, ...]:
    """Returns the captions in a text, without blank ones.

    Args:
        text: of a caption file.
        caption_files: "lines" for a caption on each line; "whole" for one caption. Its line breaks become blanks: T5's
            tokenizer has no token for them and reads them as blanks.
        split_lines: splits a text into lines.
    """
    captions = [" ".join(text.split())] if caption_files == "whole" else split_lines(text)
    return tuple(caption.strip() for caption in captions if caption.strip())


def is_one_text(text: str) -> bool:
    """Returns whether the lines of a text look like the paragraphs of one caption."""
    return bool(_PARAGRAPHS.search(text.strip().replace("\r\n", "\n")))


def json_captions(metadata: Any, keys: tuple[str, ...] = ("captions", "caption")) -> list[str]:
    """Returns the captions in a JSON object: the value of the first key that it has, a text or a list of texts.

    Raises:
        ValueError: they are not text, or the metadata are not an object.
    """
    if not isinstance(metadata, dict):
        raise ValueError(f"a {type(metadata).__name__}, expected an object")
    value = next((metadata[key] for key in keys if key in metadata), None) or []
    captions = value if isinstance(value, list) else [value]
    if not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"{value!r} as caption, expected text")
    return captions


def json_columns(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Returns the numbers and strings of a JSON object, as columns."""
    return {key: str(value) for key, value in metadata.items() if isinstance(value, (str, int, float))}


def parse_json(data: bytes) -> Any:
    """Returns the JSON in UTF-8, UTF-16 or UTF-32.

    Raises:
        EncodingError: it is in another encoding.
        ValueError: it is not JSON.
        RecursionError: it is nested too deeply.
    """
    try:
        return json.loads(data)
    except UnicodeDecodeError as error:
        decode_text(data)
        raise EncodingError(f"is not UTF-8 text: {_FIX}") from error
