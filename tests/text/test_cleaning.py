"""Cleaned captions are those of diffusers, and every text can be cleaned."""

import json
import sys
import time

import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.text.alignment import align_tokens
from imagen_jax.text.cleaning import cleaning_fn
from imagen_jax.text.tokenizer import byte_tokenizer
from tests.goldens.captions import cases

clean = cleaning_fn("if")


def test_equals_diffusers():
    expected = json.loads(cases.GOLDEN.read_text())
    assert len(expected) >= 60 and set(cases.CAPTIONS) == expected.keys()
    assert {caption: cases.ours(caption) for caption in expected} == expected


def test_none_changes_nothing():
    assert all(cleaning_fn("none")(caption) is caption for caption in cases.CAPTIONS)


@pytest.mark.filterwarnings("ignore:It looks like you're using an HTML parser to parse an XML document")
def test_any_text_can_be_cleaned():
    """Also where diffusers ends with an error."""
    for caption in [*cases.random_captions(2000, seed=1), "<![x", "&#" + "1" * 5000 + ";", "＆＃" + "1" * 5000 + "x"]:
        cleaned = clean(caption)
        assert cleaned == cleaned.strip() and "\n" not in cleaned
    assert clean("paired \ud83d\ude00, lone \ud800") == "paired \U0001f600, lone \ufffd"


def test_long_captions_take_no_time():
    start = time.process_time()
    for part in ("<b>", "a.", "<a ", "&amp;", "x1", "free ", "漢字", "<!--"):
        clean(part * (4000 // len(part)))
    assert time.process_time() - start < 10


def test_tokens_are_those_of_cleaned_captions():
    tokenize = byte_tokenizer(16, cleaning="if")
    captions = ["A <b>Red</b> Circle http://example.com", "a red circle", "http://example.com", "x" * 20]
    tokens, mask = tokenize(captions)
    assert (tokens[0] == tokens[1]).all() and mask[0].sum() == 13
    assert not mask[2].any()  # nothing is left
    assert tokenize.count_truncated(captions) == 1
    assert byte_tokenizer(16).count_truncated(captions) == 3
    assert tokenize.fingerprint == byte_tokenizer(16).fingerprint


def test_cleaned_texts_are_aligned():
    plain, cleaning = byte_tokenizer(32), byte_tokenizer(32, cleaning="if")
    expected = align_tokens(plain, "a red circle", "a blue circle")
    assert (align_tokens(cleaning, "A  red <i>circle</i>", "A blue circle #12") == expected).all()


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    cleaning_fn.cache_clear()
    with pytest.raises(ConfigError, match=r"ftfy, which is not installed: pip install 'imagen_jax\[if\]'"):
        byte_tokenizer(8, cleaning="if")
    byte_tokenizer(8)
    with pytest.raises(ConfigError, match="text.cleaning 'iff' is not known"):
        byte_tokenizer(8, cleaning="iff")
