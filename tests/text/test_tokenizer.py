import json
import time

import numpy as np
import pytest
from transformers import ByT5Tokenizer

from imagen_jax.text import tokenizer as tokens_module
from imagen_jax.text.tokenizer import byte_tokenizer, folder_tokenizer

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
    tokens, mask = byte_tokenizer(length).encode_one(caption)
    assert tokens.dtype == np.int32 and mask.dtype == bool
    np.testing.assert_array_equal(tokens, expected["input_ids"])
    np.testing.assert_array_equal(mask, expected["attention_mask"])


def test_equals_transformers_on_random_strings(transformers_tokenizer):
    rng = np.random.default_rng(0)
    tokenize = byte_tokenizer(64)
    for _ in range(50):
        points = rng.integers(0, 0x11000, rng.integers(1, 30))
        caption = "x" + "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)
        tokens, mask = tokenize.encode_one(caption)
        expected = transformers_tokenizer(caption, max_length=64, truncation=True)["input_ids"]
        np.testing.assert_array_equal(tokens[mask], expected)


@pytest.mark.parametrize("blank", ["", " ", "\n\t "])
def test_blank_caption_has_no_tokens(blank):
    tokens, mask = byte_tokenizer(8).encode_one(blank)
    assert not tokens.any() and not mask.any()


@pytest.mark.parametrize("blank", ["", " ", "\n\t "])
def test_blank_caption_is_eos_where_padding_is_encoded(word_folder, blank):
    for tokenize in (byte_tokenizer(8, "encoded"), folder_tokenizer(word_folder, 8, "encoded")):
        for ours, expected in zip(tokenize.encode_one(blank), tokenize.empty_caption, strict=True):
            np.testing.assert_array_equal(ours, expected)


def test_truncation_keeps_eos_and_is_counted():
    tokenize = byte_tokenizer(8)
    captions = ["1234567", "12345678", "é" * 9, "", "<pad>" * 9]
    tokens, mask = tokenize(captions)
    assert (tokens[[0, 1, 2, 4], -1] == 1).all() and mask[[0, 1, 2, 4]].all()
    assert tokenize.count_truncated(captions) == 3


@pytest.mark.parametrize("caption", ["lone \ud800 surrogate", "\udfff", "\ud83d\ude00", "\0", "<pad>\udc00"])
def test_unusual_unicode(caption):
    tokens, mask = byte_tokenizer(32).encode_one(caption)
    assert mask.any() and (tokens >= 0).all() and (tokens < 384).all()


def odd_captions(count, seed=0):
    """Captions of up to 10,000 random code points, many of them lone surrogates."""
    rng = np.random.default_rng(seed)
    kinds = [(0, 0x20), (0x20, 0x7F), (0x590, 0x700), (0xD800, 0xE000), (0x1F300, 0x1FAFF), (0, 0x110000)]
    for length in [*rng.integers(0, 60, count - 1), 10_000]:
        low, high = np.asarray(kinds)[rng.integers(len(kinds), size=length)].T if length else ((), ())
        yield "".join(map(chr, rng.integers(low, high))) + "".join(rng.choice(ODD, rng.integers(3)))


def properties(tokenize, captions):
    """Shapes do not depend on captions, so that nothing is recompiled."""
    tokens, mask = tokenize(captions)
    assert tokens.shape == mask.shape == (len(captions), tokenize.length)
    assert (tokens.dtype, mask.dtype) == (np.int32, bool)
    assert (tokens >= 0).all() and (tokens < tokenize.vocab_size).all()
    cut = 0
    for caption, row, shown in zip(captions, tokens, mask, strict=True):
        count = shown.sum()
        assert shown[:count].all() and not row[count:].any()  # tokens first, then padding
        assert (count == 0) == (not caption.strip())
        assert count == 0 or row[count - 1] == tokenize.eos_id
        full = tokenize.ids(caption) if caption.strip() else []
        cut += len(full) > tokenize.length
        kept = max(count - 1, 0)
        assert list(row[:kept]) == list(full[:kept])
    assert tokenize.count_truncated(captions) == cut > 0


@pytest.mark.filterwarnings("ignore:This sequence already has")
def test_shape_and_truncation_of_any_caption(word_folder):
    captions = list(odd_captions(150))
    properties(byte_tokenizer(24), captions)
    properties(folder_tokenizer(word_folder, 4), captions)


def test_empty_caption_is_eos(word_folder):
    for tokenize in (byte_tokenizer(5), folder_tokenizer(word_folder, 5)):
        tokens, mask = tokenize.empty_caption
        assert (tokens.dtype, mask.dtype) == (np.int32, bool)
        np.testing.assert_array_equal(tokens, [1, 0, 0, 0, 0])
        np.testing.assert_array_equal(mask, [True, False, False, False, False])


def test_tokenizer_fingerprints_differ(word_folder):
    result = folder_tokenizer(word_folder, 4).fingerprint
    assert result == folder_tokenizer(word_folder, 5).fingerprint != byte_tokenizer(4).fingerprint
    path = word_folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"circle"', '"triangle"'))
    assert folder_tokenizer(word_folder, 4).fingerprint != result


def test_batch_equals_single_captions():
    tokenize = byte_tokenizer(20)
    tokens, mask = tokenize(ODD)
    for row, caption in enumerate(ODD):
        one_tokens, one_mask = tokenize.encode_one(caption)
        np.testing.assert_array_equal(tokens[row], one_tokens)
        np.testing.assert_array_equal(mask[row], one_mask)


def test_no_captions():
    tokens, mask = byte_tokenizer(5)([])
    assert tokens.shape == mask.shape == (0, 5)


def test_byte_tokenizer_speed():
    tokenize = byte_tokenizer(96)
    caption = "a large red circle left of a small blue square"
    start = time.process_time()
    for _ in range(2000):
        tokenize.encode_one(caption)
    assert time.process_time() - start < 1.0


def test_non_str_and_short_length_raise():
    with pytest.raises(ValueError, match="expected str: decode it first"):
        byte_tokenizer(8)([b"a red circle"])
    with pytest.raises(ValueError, match="text length is 1"):
        byte_tokenizer(1)


@pytest.fixture
def word_folder(tmp_path):
    """Writes a T5-like tokenizer.json with one token per word and </s> at the end."""
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
    assert tokenize.count_truncated(captions) == 1


def test_folder_without_tokenizer_raises(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer could be read from .*: put tokenizer.json"):
        folder_tokenizer(tmp_path, length=4)


def test_missing_sentencepiece_names_package(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens_module, "find_spec", lambda name: None)
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    with pytest.raises(ValueError, match="pip install sentencepiece"):
        folder_tokenizer(tmp_path, length=4)


def test_folder_with_byte_tokenizer(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    tokens, _ = folder_tokenizer(tmp_path, length=4).encode_one("ab")
    np.testing.assert_array_equal(tokens, [100, 101, 1, 0])
