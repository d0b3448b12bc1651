"""What the grammars of captions share."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable


def alternatives(words: Iterable[str]) -> str:
    """Returns a regular expression of any of the words, the longest first."""
    return "|".join(sorted(words, key=len, reverse=True))


def split_background(text: str, backgrounds: tuple[str, ...]) -> tuple[str, str]:
    """Returns (a caption without what it says of the background, the background's name or "").

    Args:
        text: such as "a ring on a gray background", or "on a gray background, a ring".
        backgrounds: the names.
    """
    first, last = _background_patterns(backgrounds)
    if match := first.fullmatch(text):
        return match[2], match[1]
    if match := last.fullmatch(text):
        return match[1], match[2]
    return text, ""


@functools.cache
def _background_patterns(backgrounds: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    background = rf"on an? ({alternatives(backgrounds)}) background"
    return re.compile(rf"{background}[,:]? (.+)"), re.compile(rf"(.+?),? {background}")
