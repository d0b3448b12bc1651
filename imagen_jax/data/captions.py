"""From the text of caption files, or JSON, to captions: in folders as in tar shards."""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from imagen_jax.data.encodings import FIX, EncodingError, decode_text

CAPTION_FILES = ("lines", "whole")

# what is not text at the ends of a caption: blanks, and the NULs of fields of a fixed length
_PADDING = "\0" + "".join(filter(str.isspace, map(chr, range(0x3001))))
# blank lines between others, headings and list items of Markdown, lines that end within a sentence
_PARAGRAPHS = re.compile(r"\S[ \t]*\n[ \t]*\n\s*\S|^#{1,6} \S|^\s*([-*•]|\d+\.) \S|[,;]\s*\n\s*\S", re.MULTILINE)


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
    return clean_captions([" ".join(text.split())] if caption_files == "whole" else split_lines(text))


def clean_captions(captions: Iterable[str]) -> tuple[str, ...]:
    """Returns captions without the blanks and NULs at their ends, and without blank ones.

    Raises:
        ValueError: one has half of a surrogate pair, as JSON may: texts that are cut within an emoji.
    """
    cleaned = (caption.strip(_PADDING) for caption in captions)
    kept = tuple(caption for caption in cleaned if caption)
    for caption in kept:
        try:
            caption.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"its caption {caption[:100]!r} has half of a surrogate pair, {caption[error.start]!r}, which is not "
                "text: remove it"
            ) from error
    return kept


def is_one_text(text: str) -> bool:
    """Returns whether the lines of a text look like the paragraphs of one caption."""
    return bool(_PARAGRAPHS.search(text.strip().replace("\r\n", "\n")))


def json_captions(metadata: Any, keys: tuple[str, ...] = ("captions", "caption")) -> list[str]:
    """Returns the captions in a JSON object: the first value that is not blank, a text or a list of texts.

    Raises:
        ValueError: they are not text, or the metadata are not an object.
    """
    if not isinstance(metadata, dict):
        raise ValueError(f"a {type(metadata).__name__}, expected an object")
    for value in (metadata.get(key) or [] for key in keys):
        captions = value if isinstance(value, list) else [value]
        if not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f"{value!r} as caption, expected text")
        if any(caption.strip(_PADDING) for caption in captions):
            return captions
    return []


def json_columns(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Returns the numbers and strings of a JSON object, as columns."""
    return {key: str(value) for key, value in metadata.items() if isinstance(value, (str, int, float, Repeated))}


class Repeated(list[Any]):
    """The values of a key or column that an object or a row has several times."""


def join_repeated(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Returns keys with their values; all different ones, but for empty ones, of a key that is there several times."""
    if len(unique := dict(pairs)) == len(pairs):
        return unique
    values: dict[str, list[Any]] = collections.defaultdict(list)
    for key, value in pairs:
        if value not in values[key]:
            values[key].append(value)
    joined = {}
    for key, different in values.items():
        filled = [value for value in different if value not in (None, "")] or different
        flat = [item for value in filled for item in (value if isinstance(value, list) else [value])]
        joined[key] = filled[0] if len(filled) == 1 else Repeated(flat)
    return joined


def parse_json(data: bytes) -> Any:
    """Returns the JSON in UTF-8, UTF-16 or UTF-32; a key that an object has several times has all its values.

    Raises:
        EncodingError: it is in another encoding.
        ValueError: it is not JSON.
        RecursionError: it is nested too deeply.
    """
    try:
        return json.loads(data, object_pairs_hook=join_repeated)
    except UnicodeDecodeError as error:
        decode_text(data)
        raise EncodingError(f"is not UTF-8 text: {FIX}") from error
