"""Which tokens of two texts correspond: shared words to themselves, replaced words to those at the same place."""

from __future__ import annotations

import difflib
import re

import numpy as np

from imagen_jax.text.tokenizer import Tokenizer

_WORD = re.compile(r"\w+|[^\w\s]")


def align_tokens(tokenizer: Tokenizer, source: str, edited: str) -> np.ndarray:
    """Returns how the attention to the tokens of a text is shared out to those of another one, float32 [L, L].

    Row i has the shares of token i of `source`, and column j those that token j of `edited` gets. Tokens of a shared
    word correspond one by one; replaced words share what their counterparts have, which have as many words or are
    taken together (arXiv:2208.01626, Section 3.2, word swap and phrase addition). Columns of new words are zero, and so
    are rows of words that are left out. The ends of sequence correspond.

    Args:
        tokenizer: of both texts; tokens beyond its length L are left out.
        source: the text to take attention from.
        edited: the text to give it to.
    """
    alignment = np.zeros((tokenizer.length, tokenizer.length), np.float32)
    words, tokens = _words_and_tokens(tokenizer, tokenizer.clean(source))
    edited_words, edited_tokens = _words_and_tokens(tokenizer, tokenizer.clean(edited))
    matcher = difflib.SequenceMatcher(None, words, edited_words, autojunk=False)
    for kind, start, end, edited_start, edited_end in matcher.get_opcodes():
        if kind in ("insert", "delete"):
            continue
        first, second = tokens[start:end], edited_tokens[edited_start:edited_end]
        if len(first) != len(second):  # other phrases: as one word
            first, second = [_join(first)], [_join(second)]
        for one, other in zip(first, second, strict=True):
            _share(alignment, one, other)
    # the ends of sequence
    _share(
        alignment, *(range(rows[-1].stop, rows[-1].stop + 1) if rows else range(0) for rows in (tokens, edited_tokens))
    )
    return alignment


def _words_and_tokens(tokenizer: Tokenizer, text: str) -> tuple[list[str], list[range]]:
    """Returns the words of a text, and which tokens each of them has."""
    last = min(len(tokenizer.ids(text)), tokenizer.length) - 1
    found = list(_WORD.finditer(text))
    # a tokenizer of T5 does not join words: the tokens of a text begin with those of its beginnings
    ends = [0, *(min(len(tokenizer.ids(text[: match.end()])) - 1, last) for match in found)]
    ends[-1] = last
    ends = np.maximum.accumulate(ends).tolist()
    return [match[0] for match in found], [range(*span) for span in zip(ends, ends[1:], strict=False)]


def _join(tokens: list[range]) -> range:
    return range(tokens[0].start, tokens[-1].stop)


def _share(alignment: np.ndarray, source: range, edited: range) -> None:
    """Sets the shares of the tokens of a word in those of another: one by one, or evenly if their numbers differ."""
    for offset, row in enumerate(source):
        if len(source) == len(edited):
            alignment[row, edited[offset]] = 1
        else:
            alignment[row, list(edited)] = 1 / max(len(edited), 1)
