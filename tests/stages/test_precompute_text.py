"""The embedding cache of a config's captions: what it holds, whatever breaks its writing off, and what is refused."""

import dataclasses
import itertools
import json
import os
import resource
import tracemalloc

import jax
import numpy as np
import pytest

from benchmarks import embed_kills
from imagen_jax.data.pipeline import training_batches
from imagen_jax.datasets.captions import training_captions
from imagen_jax.datasets.from_config import make_examples
from imagen_jax.errors import ConfigError
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.stages import precompute_text
from imagen_jax.stages.precompute_text import embed
from imagen_jax.stages.text import make_cached_encoder, make_encoder
from imagen_jax.text import embedding_cache as cache_module
from imagen_jax.text import embedding_cache_writer
from imagen_jax.text.embedding_cache import STORAGE_DTYPES, EmbeddingCache, caption_key, read_manifest
from imagen_jax.text.embedding_cache_writer import Embedder, index_captions, quantize
from tests.helpers.configs import base_config, contents
from tests.helpers.crash import Killed, killing

SHARD_ROWS = 16
ODD = ["  ", "", "nul \0 inside", "lone \ud800", "lone ?", "‮ right to left שלום", "😀" * 9, "x" * 10_000, "</s>"]


def config_of(**changes):
    return base_config(**{"data.num_examples": 22, **changes})


@pytest.fixture(scope="module")
def encoder():
    return make_encoder(config_of().text)


@pytest.fixture(scope="module")
def captions():
    """What training reads, each once."""
    found = training_captions(config_of())
    return sorted({caption for i in range(len(found)) for caption in found[i]})


@pytest.fixture(scope="module")
def encode(encoder):
    """Captions → embeddings [B, L, D], without a cache."""
    program = jax.jit(encoder.encode)

    def encode(captions):
        return np.asarray(program(encoder.params, *encoder.tokenize(captions)))

    return encode


@pytest.fixture(scope="module")
def embedders(encoder):
    """By dtype, each compiled once."""
    mesh = make_mesh({"data": 1, "fsdp": -1})
    return {dtype: Embedder(encoder, mesh, 8, dtype) for dtype in STORAGE_DTYPES}


@pytest.fixture(scope="module")
def write(encoder, embedders):
    """The command, but that it does not make and compile its encoder again."""

    def write(out, dtype="bfloat16", **changes):
        out.mkdir(exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(precompute_text, "make_encoder", lambda _: encoder)
            patch.setattr(precompute_text, "Embedder", lambda *_: embedders[dtype])
            embed(config_of(**changes), out, dtype, batch_size=8, shard_rows=SHARD_ROWS)

    return write


@pytest.fixture(scope="module")
def caches(tmp_path_factory, write):
    """The folders of whole caches, by dtype."""
    folder = tmp_path_factory.mktemp("caches")
    for dtype in STORAGE_DTYPES:
        write(folder / dtype, dtype)
    return {dtype: folder / dtype for dtype in STORAGE_DTYPES}


@pytest.fixture
def whole(caches):
    return caches["bfloat16"]


@pytest.fixture
def copied(whole, tmp_path):
    """A whole cache to be spoilt."""
    folder = tmp_path / "cache"
    folder.mkdir()
    for name, data in contents(whole).items():
        (folder / name).write_bytes(data)
    return folder


def cosines(x, y):
    """Of vectors [..., D]."""
    return np.sum(x * y, -1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1))


def test_a_cache_says_what_the_encoder_says(encoder, encode, captions, whole):
    cache, asked = EmbeddingCache(whole), [*captions, "", " "]
    found, mask = cache(asked)
    assert found.dtype == "bfloat16"
    np.testing.assert_array_equal(mask, encoder.tokenize(asked)[1])
    np.testing.assert_allclose(found.astype(np.float32), encode(asked), atol=1e-5, rtol=2**-8)
    arrays = cache.as_features(captions[3])
    np.testing.assert_array_equal(arrays["tokens"], found[3])
    np.testing.assert_array_equal(arrays["mask"], mask[3])
    assert cache.count_truncated(asked) == encoder.tokenize.count_truncated(asked) > 0
    assert sum(shard.cut for shard in read_manifest(whole).shards) == cache.count_truncated(captions)


def test_the_empty_caption_is_there_and_is_the_end_of_sequence(encoder, encode, whole):
    tokens, mask = encoder.tokenize.empty_caption
    found, found_mask = EmbeddingCache(whole).empty_caption
    np.testing.assert_array_equal(found_mask, mask)
    expected = encoder.encode(encoder.params, tokens[None], mask[None])[0]
    np.testing.assert_allclose(found.astype(np.float32), expected, atol=1e-5, rtol=2**-8)
    assert not encode([""]).any()


def test_bytes_of_8_bits_say_nearly_the_same_in_little_more_than_half_the_space(encode, captions, caches):
    cache = EmbeddingCache(caches["int8"])
    found, mask = cache(captions)
    errors = 1 - cosines(found[mask].astype(np.float32), encode(captions)[mask])
    shards = read_manifest(caches["int8"]).shards
    assert errors.max() < 1e-3
    # what the command tells, but for the empty caption
    assert max(shard.worst_cosine_error for shard in shards) == pytest.approx(errors.max(), rel=0.05)
    told = sum(shard.cosine_error for shard in shards) / sum(shard.tokens for shard in shards)
    assert told == pytest.approx(errors.mean(), rel=0.05)


@pytest.mark.parametrize("dtype, limit", [("bfloat16", 1e-5), ("int8", 1e-4)])
def test_what_is_kept_is_near_at_any_size_and_zero_stays_zero(dtype, limit):
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((3, 5, 64)).astype(np.float32) * 10.0 ** rng.integers(-6, 7, (3, 5, 1))
    embeddings[1, 2] = 0
    values, scales, errors = map(np.asarray, quantize(embeddings, dtype))
    restored = values.astype(np.float32) * scales[..., None]
    assert not restored[1, 2].any()
    assert 0 <= errors.min() <= errors.max() < limit
    there = np.abs(embeddings).sum(-1) > 0
    np.testing.assert_allclose(1 - cosines(restored[there], embeddings[there]), errors[there], atol=1e-5)


def test_captions_that_are_alike_are_embedded_once(monkeypatch):
    """Also where they are looked at in many small parts; blank ones have no tokens, and so no row."""
    rng = np.random.default_rng(0)
    given = [tuple(rng.choice([*ODD, *map(str, range(40))], rng.integers(0, 4))) for _ in range(200)]
    distinct = {caption for example in given for caption in example if caption.strip()}
    expected = sorted([caption_key(""), *map(caption_key, distinct)])
    for chunk in (1, 7, 10**6):
        monkeypatch.setattr(embedding_cache_writer, "_CHUNK", chunk)
        found = index_captions(given, hidden=True)
        assert found.given == sum(map(len, given))
        assert list(found.keys) == expected
        for key, (example, place) in zip(found.keys, found.positions, strict=True):
            caption = given[example][place] if example >= 0 else ""
            assert key == caption_key(caption)
            # the first there is
            assert all(caption not in earlier for earlier in given[: max(example, 0)])


def test_the_survey_needs_little_memory_however_long_captions_are(monkeypatch):
    class Long:
        def __len__(self):
            return 20_000

        def __getitem__(self, index):
            return (f"{index}" + "x" * 1000,)

    monkeypatch.setattr(embedding_cache_writer, "_CHUNK", 1000)
    tracemalloc.start()
    found = index_captions(Long(), hidden=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.keys) == 20_001
    assert peak < 20_000 * 250


@pytest.mark.parametrize("dtype, error", [("bfloat16", 2**-8), ("int8", 0.02)])
def test_padding_is_stored_where_it_is_encoded(tmp_path, dtype, error):
    """Of captions that are cleaned, too; one of them to nothing."""
    config = config_of(**{"text.padding": "encoded", "text.cleaning": "if"})
    given = [("A <b>Red</b> ring", "a red ring"), ("http://example.com", "x" * 99), ("  ",)]
    captions = [*itertools.chain(*given), ""]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precompute_text, "training_captions", lambda _: Captions(given))
        patch.setattr(precompute_text, "check_captions", lambda *_: None)
        embed(config, tmp_path, dtype, batch_size=8, shard_rows=3)
    encoder = make_encoder(config.text)
    expected, expected_mask = map(np.asarray, encoder(captions))
    cache = make_cached_encoder(config.text.with_changes(cache=str(tmp_path))).tokenize
    embeddings, mask = cache(captions)
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_allclose(embeddings.astype(np.float32), expected, atol=error * np.abs(expected).max())
    assert np.abs(expected[~mask]).max(axis=-1).min() > 0.01
    np.testing.assert_array_equal(mask.sum(1), [11, 11, 1, 24, 1, 1])
    assert cache.count_truncated(captions) == 1
    for array, of_empty in zip(cache.empty_caption, cache([""]), strict=True):
        np.testing.assert_array_equal(array, of_empty[0])


def test_captions_cleaned_to_nothing_have_no_tokens(tmp_path):
    config = config_of(**{"text.cleaning": "if"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precompute_text, "training_captions", lambda _: Captions([("http://example.com",)] * 2))
        patch.setattr(precompute_text, "check_captions", lambda *_: None)
        embed(config, tmp_path, batch_size=8)
    embeddings, mask = EmbeddingCache(tmp_path)(["http://example.com"])
    assert not embeddings.any() and not mask.any()


class Captions(list):
    """The captions of each example, as of a data set."""

    sources = unreadable = ()


def test_caches_without_padding_and_cleaning_are_read(write, captions, whole, copied):
    manifest = json.loads((copied / "manifest.json").read_text())
    assert (manifest.pop("padding"), manifest.pop("cleaning")) == ("zero", "none")
    (copied / "manifest.json").write_text(json.dumps(manifest))
    np.testing.assert_array_equal(EmbeddingCache(copied)(captions)[0], EmbeddingCache(whole)(captions)[0])
    write(copied)


def killed(write, out, at):
    """Whether the command was killed before it came to its end."""
    with pytest.MonkeyPatch.context() as patch:
        killing(patch, at, (embedding_cache_writer, "pack_row"))
        try:
            write(out)
        except Killed:
            return True
    return False


def test_killed_at_any_point_it_ends_with_the_bytes_of_an_unbroken_run(write, whole, tmp_path):
    expected = contents(whole)
    at = 0
    while killed(write, tmp_path / str(at), at):
        out = tmp_path / str(at)
        # what has a manifest is whole
        assert "manifest.json" not in contents(out) or contents(out).items() >= expected.items()
        killed(write, out, at // 2)
        write(out)
        assert contents(out) == expected
        at += 1
    assert at > 60
    assert contents(tmp_path / str(at)) == expected


@pytest.mark.slow
def test_killed_by_the_system_too(tmp_path):
    found = embed_kills.kill_repeatedly(config_of(**{"data.num_examples": 500}), tmp_path, kills=2, seed=0)
    assert len(found.shards_at_kills) == 2
    assert found.caches >= 1


def test_what_is_whole_is_not_written_again(write, copied):
    before = {path.name: path.stat().st_mtime_ns for path in copied.glob("shard-*")}
    write(copied)
    assert {path.name: path.stat().st_mtime_ns for path in copied.glob("shard-*")} == before


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_is_seen_when_its_row_is_read_and_mended_by_the_command(write, captions, whole, copied, seed):
    rng = np.random.default_rng(seed)
    shard = sorted(copied.glob("shard-*"))[seed % 3]
    data = bytearray(shard.read_bytes())
    # ArrayRecord fills its blocks up with zeros that nobody reads
    used = len(bytes(data).rstrip(b"\0"))
    data[rng.integers(used)] ^= 1 << rng.integers(8)
    shard.write_bytes(data)
    cache, refused = None, 0
    for caption in captions:
        try:
            cache = cache or EmbeddingCache(copied)
            np.testing.assert_array_equal(cache([caption])[0], EmbeddingCache(whole)([caption])[0])
        except ConfigError as error:
            refused += 1
            assert f"{shard} is damaged (" in str(error)
            assert "run the embed command again" in str(error)
            assert "\n" not in str(error)
    # one row alone, or, where it is the list of rows, those of the shard; or padding within the file
    assert refused <= SHARD_ROWS
    write(copied)
    assert contents(copied) == contents(whole)


def test_a_damaged_row_ends_training_by_the_sentence(copied):
    for shard in copied.glob("shard-*"):
        data = shard.read_bytes()
        shard.write_bytes(data[:200] + bytes(len(data) - 400) + data[-200:])
    config = config_of()
    batches = training_batches(
        make_examples(config.data, "train", config.image_size, config.channels),
        text_features=EmbeddingCache(copied).as_features,
        batch_size=2,
        seed=0,
        threads=2,
        prefetch=2,
    )
    with pytest.raises(ConfigError, match="is damaged .*: run the embed command again"):
        next(batches)


def change_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


SPOILT = {
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "it has no manifest.json: give the --out"),
    "half a manifest": (lambda folder: (folder / "manifest.json").write_bytes(b'{"leng'), "manifest.json is damaged"),
    "a list": (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json is damaged"),
    "bytes": (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe"), "manifest.json is damaged"),
    "no field": (lambda folder: (folder / "manifest.json").write_text('{"shards": []}'), "manifest.json is damaged"),
    "a word": (lambda folder: change_manifest(folder, width="64"), "width is '64', expected int"),
    "no rows": (lambda folder: change_manifest(folder, shard_rows=0), "manifest.json is damaged"),
    "fewer shards": (lambda folder: change_manifest(folder, shards=[]), "manifest.json is damaged"),
    "another dtype": (lambda folder: change_manifest(folder, dtype="float8"), "manifest.json is damaged"),
    "no keys": (lambda folder: (folder / "keys").unlink(), "keys is damaged: run the embed command again"),
    "other keys": (lambda folder: (folder / "keys").write_bytes(b"0" * 32), "keys is damaged"),
    "no shard": (lambda folder: next(folder.glob("shard-00001*")).unlink(), "shard-00001-of-00003.array_record is mis"),
    "half a shard": (
        lambda folder: os.truncate(next(folder.glob("shard-00001*")), 70_000),
        "shard-00001-of-00003.array_record has 70000 bytes",
    ),
}


@pytest.mark.parametrize("spoil, said", SPOILT.values(), ids=SPOILT)
def test_a_spoilt_cache_is_refused_in_one_sentence(copied, spoil, said):
    spoil(copied)
    with pytest.raises(ConfigError, match=said) as refused:
        EmbeddingCache(copied)
    assert "\n" not in str(refused.value)


def test_rows_of_another_width_are_damaged(copied, captions):
    change_manifest(copied, width=32)
    with pytest.raises(ConfigError, match="is damaged"):
        EmbeddingCache(copied)(captions)


def test_a_cache_of_something_else_is_not_overwritten(write, copied):
    before = contents(copied)
    with pytest.raises(ConfigError, match="holds another embedding cache: captions_hash was .*: give another --out"):
        write(copied, **{"data.seed": 1})
    with pytest.raises(ConfigError, match="dtype was 'bfloat16' and is now 'int8'"):
        write(copied, "int8")
    assert contents(copied) == before


def test_captions_that_are_not_there_are_named(captions, whole):
    cache = EmbeddingCache(whole)
    cache.check_captions([*captions, "", " \n"])
    with pytest.raises(ConfigError, match="lacks the caption 'a green cat'"):
        cache.check_captions([*captions, "a green cat", "a blue cat"])
    with pytest.raises(ConfigError, match="lacks the caption 'a green cat'"):
        cache(["a green cat"])


def test_odd_captions_are_kept_and_found(encoder, encode, embedders, tmp_path):
    """No two of them are taken for one another, not even by a lone surrogate, which is read as a question mark."""
    found = index_captions([tuple(ODD), tuple(ODD)], hidden=True)
    plan = precompute_text._make_plan(encoder, found, "bfloat16", 4)
    embedding_cache_writer.prepare_folder(tmp_path, plan, found.keys, writes=True)
    for shard in range(plan.shards):
        chosen = embedding_cache_writer.shard_captions(shard, plan, found, [tuple(ODD), tuple(ODD)])
        embedding_cache_writer.write_shard(tmp_path, plan, shard, chosen, embedders["bfloat16"], lambda count: None)
    embedding_cache_writer.finalize(tmp_path, plan)
    cache = EmbeddingCache(tmp_path)
    cache.check_captions(ODD)
    np.testing.assert_allclose(cache(ODD)[0].astype(np.float32), encode(ODD), atol=1e-5, rtol=2**-8)
    assert cache.plan.captions == len(ODD) - 1  # blanks are no rows, and the empty one is
    assert "lone \ud801" not in cache
    # whatever their lengths and numbers, nothing was compiled for one of them
    assert embedders["bfloat16"]._program._cache_size() == 1


def test_shards_that_other_processes_wrote_elsewhere_are_missed(encoder, tmp_path):
    found = index_captions([("a", "b", "c")], hidden=True)
    plan = precompute_text._make_plan(encoder, found, "bfloat16", 2)
    embedding_cache_writer.prepare_folder(tmp_path, plan, found.keys, writes=True)
    with pytest.raises(ConfigError, match="lacks 2 of 2 shards"):
        embedding_cache_writer.finalize(tmp_path, plan)


def test_captions_that_change_meanwhile_are_refused(encoder):
    found = index_captions([("a",), ("b",)], hidden=True)
    plan = precompute_text._make_plan(encoder, found, "bfloat16", 4)
    with pytest.raises(ConfigError, match="the captions of example 1 have changed"):
        embedding_cache_writer.shard_captions(0, plan, found, [("a",), ("c",)])


def test_open_files_are_allowed_or_asked_for(whole, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        EmbeddingCache(whole)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    with pytest.raises(ConfigError, match="needs 259 open files, .*ulimit -n 259"):
        EmbeddingCache(whole)


def means(config):
    return make_cached_encoder(config.text)


def test_a_cache_of_another_encoder_or_length_is_refused(whole, encoder, tmp_path):
    fingerprint = encoder.fingerprint()
    assert means(config_of(**{"text.cache": str(whole)})).width == encoder.width
    assert means(config_of(**{"text.cache": str(whole), "text.fingerprint": fingerprint})).width == encoder.width
    # the encoder is not looked for where its fingerprint is said
    absent = {"text.cache": str(whole), "text.model": "/none/there"}
    means(config_of(**absent, **{"text.fingerprint": fingerprint}))
    for changes, said in [
        ({"text.length": 25}, "length 24, .* has 25"),
        ({"text.padding": "encoded"}, "padding zero, .* has encoded"),
        ({"text.cleaning": "if"}, "cleaning none, .* has if"),
        ({"text.fingerprint": "0" * 32}, f"has fingerprint {fingerprint}, .* has 000"),
        ({"text.model": "shapes"}, f"has fingerprint {fingerprint}, and the config.s text encoder has"),
        ({"text.model": "/none/there"}, "set text.fingerprint"),
        ({"text.cache": str(tmp_path)}, "has no manifest.json"),
    ]:
        with pytest.raises(ConfigError, match=said) as refused:
            means(config_of(**{"text.cache": str(whole), **changes}))
        assert "\n" not in str(refused.value)
    other = dataclasses.replace(read_manifest(whole).plan, width=7)
    (tmp_path / "keys").write_bytes((whole / "keys").read_bytes())
    (tmp_path / "manifest.json").write_bytes(cache_module.manifest_json(other, read_manifest(whole).shards))
    for path in whole.glob("shard-*"):
        (tmp_path / path.name).symlink_to(path)
    with pytest.raises(ConfigError, match="width 7, .* has 64"):
        means(config_of(**{"text.cache": str(tmp_path)}))
