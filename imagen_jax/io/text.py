"""Makes untrusted text (prompts, captions, file names) safe to print."""

from __future__ import annotations


def printable(text: str) -> str:
    """Returns text with unprintable characters (control characters, lone surrogates) replaced by question marks."""
    return "".join(c if c.isprintable() else "?" for c in text)
