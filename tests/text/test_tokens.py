import json
import time

import numpy as np
import pytest
from transformers import ByT5Tokenizer

from imagen_jax.text import tokens as tokens_module
from imagen_jax.text.tokens import byte_tokenizer, folder_tokenizer

ODD = [
    "a red circle",
    "  spaces  kept \t\n",
    "é 漢字 😀 \u202e \ufeff",
    "nul \0 inside",
    "\x7f\x80\x9f",
    "</s>",
    "ends with </s>",
    "a </s> b",
    "<pad> first",
    "an  <unk>  b",
    "<extra_id_0> and <extra_id_124>",
    "<extra_id_125> <extra_id_00> </S> < s >",
    "x" * 300,
]


@pytest.fixture(scope="module")
def transformers_tokenizer():
    return ByT5Tokenizer()


@pytest.mark.filterwarnings("ignore:This sequence already has")
@pytest.mark.parametrize("caption", ODD)
def test_equals_transformers_byte_tokenizer(transformers_tokenizer, caption):
    length = 48
    expected = transformers_tokenizer(caption, max_length=length, padding="max_length", truncation=True)
    tokens, mask = byte_tokenizer(length).one(caption)
    assert tokens.dtype == np.int32 and mask.dtype == bool
    np.testing.assert_array_equal(tokens, expected["input_ids"])
    np.testing.assert_array_equal(mask, expected["attention_mask"])


def test_equals_transformers_on_random_strings(transformers_tokenizer):
    rng = np.random.default_rng(0)
    tokenize = byte_tokenizer(64)
    for _ in range(50):
        points = rng.integers(0, 0x11000, rng.integers(1, 30))
        caption = "x" + "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)
        tokens, mask = tokenize.one(caption)
        expected = transformers_tokenizer(caption, max_length=64, truncation=True)["input_ids"]
        np.testing.assert_array_equal(tokens[mask], expected)


@pytest.mark.parametrize("blank", ["", " ", "\n\t "])
def test_blank_caption_has_no_token(blank):
    tokens, mask = byte_tokenizer(8).one(blank)
    assert not tokens.any() and not mask.any()


def test_truncation_keeps_the_end_of_sequence_and_is_counted():
    tokenize = byte_tokenizer(8)
    captions = ["1234567", "12345678", "é" * 9, "", "<pad>" * 9]
    tokens, mask = tokenize(captions)
    assert (tokens[[0, 1, 2, 4], -1] == 1).all() and mask[[0, 1, 2, 4]].all()
    assert tokenize.overlong(captions) == 3


@pytest.mark.parametrize("caption", ["lone \ud800 surrogate", "\udfff", "\ud83d\ude00", "\0", "<pad>\udc00"])
def test_unusual_unicode_is_read(caption):
    tokens, mask = byte_tokenizer(32).one(caption)
    assert mask.any() and (tokens >= 0).all() and (tokens < 384).all()


def test_batch_equals_single_captions():
    tokenize = byte_tokenizer(20)
    tokens, mask = tokenize(ODD)
    for row, caption in enumerate(ODD):
        one_tokens, one_mask = tokenize.one(caption)
        np.testing.assert_array_equal(tokens[row], one_tokens)
        np.testing.assert_array_equal(mask[row], one_mask)


def test_no_captions():
    tokens, mask = byte_tokenizer(5)([])
    assert tokens.shape == mask.shape == (0, 5)


def test_fast_enough_for_a_data_pipeline():
    tokenize = byte_tokenizer(96)
    caption = "a large red circle left of a small blue square"
    start = time.process_time()
    for _ in range(2000):
        tokenize.one(caption)
    assert time.process_time() - start < 1.0


def test_bytes_and_short_lengths_are_refused():
    with pytest.raises(ValueError, match="expected str: decode it first"):
        byte_tokenizer(8)([b"a red circle"])
    with pytest.raises(ValueError, match="text length is 1"):
        byte_tokenizer(1)


@pytest.fixture
def word_folder(tmp_path):
    """A folder with a T5-like tokenizer.json: a word a token, </s> at the end."""
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<pad>", "</s>", "<unk>", "a", "red", "circle", "square"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_folder_tokenizer(word_folder):
    tokenize = folder_tokenizer(word_folder, length=4)
    captions = ["a red circle", "a red red circle", "square \ud800", ""]
    tokens, mask = tokenize(captions)
    np.testing.assert_array_equal(tokens[:2], [[3, 4, 5, 1], [3, 4, 4, 1]])
    np.testing.assert_array_equal(tokens[2], [6, 2, 1, 0])
    np.testing.assert_array_equal(mask.sum(1), [4, 4, 3, 0])
    assert tokenize.overlong(captions) == 1


def test_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer could be read from .*: put tokenizer.json"):
        folder_tokenizer(tmp_path, length=4)


def test_a_sentencepiece_model_without_its_reader_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens_module, "find_spec", lambda name: None)
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    with pytest.raises(ValueError, match="pip install sentencepiece"):
        folder_tokenizer(tmp_path, length=4)


def test_folder_that_names_the_byte_tokenizer(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    tokens, _ = folder_tokenizer(tmp_path, length=4).one("ab")
    np.testing.assert_array_equal(tokens, [100, 101, 1, 0])
