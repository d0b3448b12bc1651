"""Words with rows of their own in the token table: in captions, in the encoder, and in files."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, ByT5Tokenizer

from imagen_jax.errors import ConfigError
from imagen_jax.text.encoder import SHAPES_ENCODER, load_encoder
from imagen_jax.text.learned_tokens import FILE, read_learned, with_words, write_learned
from imagen_jax.text.tokenizer import byte_tokenizer, folder_tokenizer
from tests.text.test_tokenizer import word_folder  # noqa: F401  # a fixture

LENGTH = 48
CAPTION = "a large red {} to the left of a blue ring"


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("shapes", LENGTH)


@pytest.fixture(scope="module")
def rows(encoder):
    """Rows of the bytes of "square", which make a word a synonym of it."""
    tokens, _ = encoder.tokenize(["square"])
    table = encoder.read(("token_embedding", "embedding"), (slice(None), slice(None)))
    return np.asarray(table, np.float32)[tokens[0][:6]]


def embeddings(encoder, *captions):
    return np.asarray(encoder(captions)[0])


def test_word_with_the_rows_of_another_is_a_synonym(encoder, rows):
    learned = encoder.with_learned({"sks star": rows})
    captions = [CAPTION.format("sks star"), "two sks stars", "sks star", "a ring"]
    known = [caption.replace("sks star", "square") for caption in captions]
    np.testing.assert_array_equal(embeddings(learned, *captions), embeddings(encoder, *known))
    assert not np.array_equal(embeddings(encoder, *captions), embeddings(encoder, *known))


def test_captions_without_a_word_stay_as_they_are(encoder, rows):
    learned = encoder.with_learned({"sks": rows})
    captions = ["a red circle", "masks", "SKS", "", "sk s"]
    for one, other in zip(learned(captions), encoder(captions), strict=True):
        np.testing.assert_array_equal(one, other)
    assert learned.fingerprint() == encoder.fingerprint()


def test_words_add_up_and_are_replaced(encoder, rows):
    first = encoder.with_learned({"one": rows})
    both = first.with_learned({"two words": rows[::-1], "two": rows[:1]})
    assert list(both.learned) == ["one", "two words", "two"] and both.params["learned_tokens"].shape == (13, 64)
    # the longest word is found, and each has its own rows
    caption = "one two words two"
    tokens, mask = both.tokenize([caption])
    first_id = encoder.module.vocab_size
    assert tokens[0][mask[0]].tolist() == [*range(first_id, first_id + 6), 35, *range(390, 396), 35, 396, 1]
    again = both.with_learned({"one": rows[:1]})
    assert len(again.learned["one"]) == 1 and again.params["learned_tokens"].shape == (8, 64)
    with pytest.raises(ConfigError, match="single spaces"):
        encoder.with_learned({" sks": rows})


@pytest.mark.parametrize("name", ["bytes", "words"])
def test_ids_are_those_of_added_tokens(name, word_folder):  # noqa: F811
    """Those of transformers' `add_tokens`, but that a word within another one is not found."""
    if name == "bytes":
        theirs, ours = ByT5Tokenizer(), byte_tokenizer(LENGTH)
    else:
        theirs, ours = AutoTokenizer.from_pretrained(word_folder), folder_tokenizer(word_folder, LENGTH)
    first = len(theirs)
    theirs.add_tokens(["<cat>", "sks dog"])
    ours = with_words(ours, {"<cat>": 1, "sks dog": 1}, first)
    for caption in ("a red <cat> circle", "<cat><cat>", "sks dog", "a sks dog, <cat>", "red sks dogs"):
        tokens, mask = ours.encode_one(caption)
        expected = theirs(caption)["input_ids"]
        assert tokens[mask].tolist() == expected, caption


def test_word_that_cleaning_changes_is_refused():
    pytest.importorskip("ftfy")
    with pytest.raises(ConfigError, match="'<Cat>' .* becomes"):
        with_words(byte_tokenizer(LENGTH, cleaning="if"), {"<Cat>": 1}, 384)


def test_file_keeps_words(encoder, rows, tmp_path):
    write_learned(tmp_path / FILE, {"sks star": rows, "x": rows[:1]}, encoder.fingerprint())
    file = read_learned(tmp_path)
    words = file.fitting(encoder.width, encoder.fingerprint)
    assert words.keys() == {"sks star", "x"}
    np.testing.assert_array_equal(words["sks star"], rows)
    # as diffusers reads it: the word is the name of a tensor
    np.testing.assert_array_equal(load_file(tmp_path / FILE)["sks star"], rows)


def test_files_of_other_programs(rows, tmp_path):
    """One row may have one axis, and a file without a name of its word gets the given one, or its own."""
    save_file({"<cat>": rows[0]}, tmp_path / "a.safetensors")
    assert {word: array.shape for word, array in read_learned(tmp_path / "a.safetensors").words.items()} == {
        "<cat>": (1, 64)
    }
    assert list(read_learned(tmp_path / "a.safetensors", "my cat").words) == ["my cat"]
    save_file({"emb_params": rows.astype(np.float16)}, tmp_path / "statue.safetensors")
    file = read_learned(tmp_path / "statue.safetensors")
    assert list(file.words) == ["statue"] and file.words["statue"].dtype == np.float32
    assert file.fitting(64, lambda: pytest.fail("no fingerprint is needed")) == file.words


def test_every_flipped_bit_is_found(encoder, rows, tmp_path):
    path = tmp_path / FILE
    write_learned(path, {"sks star": rows}, encoder.fingerprint())
    data, expected = path.read_bytes(), read_learned(path).words["sks star"]
    rng, refused = np.random.default_rng(0), 0
    for position in rng.integers(0, len(data), 200):
        changed = bytearray(data)
        changed[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            file = read_learned(path)
        except ConfigError:
            refused += 1
            continue
        # a key of the header that nothing reads, or the name of the package's: then it is another program's file
        if file.encoder:
            np.testing.assert_array_equal(file.words["sks star"], expected)
    assert refused > 180


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"sks": np.full((2, 64), np.nan, np.float32)}, "not finite"),
        ({"sks": np.zeros((65, 64), np.float32)}, r"shape \[65, 64\]"),
        ({"sks": np.zeros((1, 2, 64), np.float32)}, r"shape \[1, 2, 64\]"),
        ({"sks": np.zeros((2, 64), np.int32)}, "not of floats"),
        ({"a  b": np.zeros((2, 64), np.float32)}, "single spaces"),
        ({"emb_params": np.zeros(64, np.float32), "b": np.zeros(64, np.float32)}, "2 words"),
        ({"sks": np.zeros((2, 63), np.float32)}, "rows of 63 numbers, and the text encoder's have 64"),
    ],
)
def test_files_that_cannot_be_used(tensors, message, encoder, tmp_path):
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(ConfigError, match=message):
        read_learned(tmp_path).fitting(encoder.width, encoder.fingerprint)


def test_words_of_another_encoder_are_refused(encoder, rows, tmp_path):
    write_learned(tmp_path / FILE, {"sks": rows}, "0" * 32)
    with pytest.raises(ConfigError, match="learned with the text encoder 00000"):
        read_learned(tmp_path).fitting(encoder.width, encoder.fingerprint)


@pytest.mark.parametrize("name", ["missing.safetensors", "learned_embeds.bin"])
def test_no_file_or_a_pickled_one(name, tmp_path):
    (tmp_path / "learned_embeds.bin").write_bytes(b"PK")
    with pytest.raises(ConfigError, match="is not there|pickled"):
        read_learned(tmp_path / name)


def test_folder_of_an_encoder_may_have_words(encoder, rows, tmp_path):
    for file in SHAPES_ENCODER.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write_learned(tmp_path / FILE, {"sks star": rows}, encoder.fingerprint())
    loaded = load_encoder(str(tmp_path), LENGTH)
    assert loaded.fingerprint() == encoder.fingerprint()
    np.testing.assert_array_equal(embeddings(loaded, "a sks star"), embeddings(encoder, "a square"))


def test_rows_are_read_in_float32_beside_bfloat16(rows):
    learned = load_encoder("shapes", LENGTH, jnp.bfloat16).with_learned({"sks": rows})
    assert learned.params["learned_tokens"].dtype == jnp.float32
    assert np.isfinite(embeddings(learned, "a sks").astype(np.float32)).all()
