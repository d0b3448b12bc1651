"""Text of unknown origin (prompts, captions, file names) made safe to print."""

from __future__ import annotations


def printable(text: str) -> str:
    """Returns text with what cannot be shown (control characters, lone surrogates) replaced by a question mark."""
    return "".join(c if c.isprintable() else "?" for c in text)
