"""Alignment of the tokens of two texts."""

import numpy as np

from imagen_jax.text.alignment import align_tokens
from imagen_jax.text.tokenizer import Tokenizer, byte_tokenizer


def word_tokenizer(length: int) -> Tokenizer:
    """A token a word."""
    ids = {}
    return Tokenizer(length, lambda text: [*(ids.setdefault(w, len(ids) + 3) for w in text.split()), 1], 1, 99, "words")


def test_equal_texts_align_to_themselves():
    alignment = align_tokens(byte_tokenizer(16), "a red circle", "a red circle")
    assert np.array_equal(alignment, np.diag(np.arange(16) <= 12))


def test_replaced_word_stands_for_the_one_at_its_place():
    alignment = align_tokens(word_tokenizer(8), "a red circle on gray", "a blue circle on gray")
    assert np.array_equal(alignment, np.diag(np.arange(8) < 6))


def test_words_of_other_lengths_share_evenly():
    alignment = align_tokens(byte_tokenizer(32), "a red circle", "a green circle")
    # " red" to " green", 4 bytes to 6
    assert np.allclose(alignment[1:5, 1:7], 1 / 6)
    assert np.array_equal(alignment[5:13, 7:15], np.eye(8))
    # no weight is lost
    assert np.allclose(alignment[:13].sum(axis=1), 1)
    assert not alignment[13:].any() and not alignment[:, 15:].any()


def test_inserted_words_take_nothing_and_left_out_ones_give_nothing():
    alignment = align_tokens(word_tokenizer(8), "a circle", "a large red circle")
    assert np.array_equal(alignment.argmax(axis=0)[[0, 3, 4]], [0, 1, 2])
    assert not alignment[:, [1, 2, 5, 6, 7]].any()
    assert np.array_equal(align_tokens(word_tokenizer(8), "a large red circle", "a circle"), alignment.T)


def test_replaced_phrases_of_other_numbers_of_words_are_taken_together():
    alignment = align_tokens(word_tokenizer(8), "a red circle", "a very dark blue circle")
    assert np.allclose(alignment[1, 1:4], 1 / 3) and alignment[2, 4] == 1


def test_tokens_beyond_the_length_are_left_out():
    alignment = align_tokens(word_tokenizer(3), "a red circle on gray", "a blue circle on gray")
    assert np.array_equal(alignment, np.eye(3))


def test_blank_text_aligns_to_nothing():
    assert not align_tokens(byte_tokenizer(8), "", "a red").any()
    assert not align_tokens(byte_tokenizer(8), "a red", "").any()
