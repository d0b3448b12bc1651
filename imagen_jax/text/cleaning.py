"""Cleaning of captions, for networks whose training captions were cleaned.

DeepFloyd IF was trained on captions of web pages, cleaned by rules that its code and that of diffusers' `IFPipeline`
repeat for prompts: without them a prompt has other tokens than such a caption had in training. The rules here are
others where that is clearer, and give equal results.
"""

from __future__ import annotations

import functools
import html
import io
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_plus

from imagen_jax.errors import require, unknown_name_error

CLEANINGS = ("none", "if")

CleanFn = Callable[[str], str]
_Rules = list[tuple[re.Pattern[str], str]]

_PASSES = 2  # some rules leave what others would have removed
_MAX_JOINED = 3  # hyphens and underscores of a text; with more of them they stand for spaces, as in file names
_FILE_TYPES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_DASHES = (
    r"\-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63"
    r"\uff0d"
)


@functools.cache
def cleaning_fn(name: str) -> CleanFn:
    """Returns a function that cleans a caption; threads may share it.

    Args:
        name: one of CLEANINGS: "none" returns captions as they are, "if" cleans them as DeepFloyd IF's were.

    Raises:
        ConfigError: the name is not known, or a package that "if" needs is not installed.
    """
    if name == "none":
        return _unchanged
    if name == "if":
        return functools.partial(_clean, require("bs4", "if"), require("ftfy", "if").fix_text)
    raise unknown_name_error("text.cleaning", name, CLEANINGS)


def _unchanged(caption: str) -> str:
    return caption


def _compile(*rules: tuple[str, str]) -> _Rules:
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


def _link(scheme: str) -> str:
    """Returns the pattern of a scheme, without what follows it, or of a host with its path, not of an e-mail."""
    host = r"[a-z0-9.-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
    return rf"\b(?:{scheme}:(?:/{{1,3}}|[a-z0-9%])|{host})"


# of a text in lower case
_LINKS = _compile(("<person>", "person"), (_link("https?"), ""), (_link("www"), ""))

_MARKS = _compile(
    (r"@\w+", ""),  # names of users
    (r"[\u31c0-\u9fff]+", ""),  # Chinese characters and signs; kana stay
    (rf"[{_DASHES}]+", "-"),
    (r"[`´«»“”¨]", '"'),
    (r"[‘’]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),  # article numbers
    (r"\\n", " "),  # line breaks that were escaped
    (r"#(?!\d{4}\b)\d+\b", ""),  # numbers, but not #1999
    (r"\b\d{6,}\b", ""),
    (rf"(?<!\S)\S+\.(?:{_FILE_TYPES})", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)

_JOINTS = re.compile("[-_]")

_CODES = _compile(
    # article numbers: abc1234, a1b, 1a2
    (r"\b(?:[A-Za-z]{1,3}\d{3,15}|[A-Za-z]+\d+[A-Za-z]+|\d+[A-Za-z]+\d+)\b", ""),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FILE_TYPES})(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[A-Za-z]+\d+[A-Za-z]+\d+[A-Za-z\d]*\b", " "),  # longer article numbers: j2d1a2a
    (r"\b\d+\.?\d*[x\u0445×]\d+\.?\d*\b", ""),  # sizes; the middle one is Cyrillic
    (r"\b\s+:\s+", ": "),
    (r"(?<=\D)[,./]\b", r"\g<0> "),
    (r"\s+", " "),
)

_ENDS = _compile(
    (r"^[\"'](.+)[\"']$", r"\1"),
    (r"^['_,:;-]", ""),
    (r"['_,:+-]$", ""),
    (r"^\.\S+$", ""),
)


def _clean(bs4: Any, fix_text: CleanFn, caption: str) -> str:
    for _ in range(_PASSES):
        caption = _clean_once(bs4, fix_text, caption)
    return caption


def _clean_once(bs4: Any, fix_text: CleanFn, caption: str) -> str:
    """Returns a caption after one pass of the rules; the packages they need are given, as importing them takes time."""
    text = _apply(_LINKS, unquote_plus(caption).strip().lower())
    text = _apply(_MARKS, _without_tags(bs4, text))
    if len(_JOINTS.findall(text)) > _MAX_JOINED:
        text = _JOINTS.sub(" ", text)
    text = _unescape(fix_text(text))
    return _apply(_ENDS, _apply(_CODES, text)).strip()


def _apply(rules: _Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _without_tags(bs4: Any, text: str) -> str:
    """Returns the text of HTML, or the HTML itself if the parser rejects it; diffusers raises an error there."""
    if "<" not in text and "&" not in text:
        return text  # the parser takes most of the time, and would change nothing
    try:
        # from a file, for it warns of strings that look like a path
        return bs4.BeautifulSoup(io.StringIO(text, newline=""), features="html.parser").text
    except (bs4.exceptions.ParserRejectedMarkup, ValueError):  # the latter for numbers of thousands of digits
        return text


def _unescape(text: str) -> str:
    try:
        return html.unescape(html.unescape(text))
    except ValueError:  # as above
        return text
