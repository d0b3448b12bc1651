import ast
import json
import pickle
import shlex
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagen_jax.errors import ConfigError
from imagen_jax.text.encoder import load_encoder, parameter_shapes, random_encoder
from imagen_jax.text.t5_weights import conversion_command, read_config, save_folder
from tests.helpers.configs import eight_devices, one_device, split_devices
from tests.helpers.encoders import BYTE_T5

CAPTIONS = ["red circle, blue square", "blue circle, red square", ""]


@pytest.fixture(scope="module")
def encoder():
    return random_encoder(seed=0, length=32)


@pytest.fixture
def folder(tmp_path, encoder):
    save_folder(tmp_path, BYTE_T5, encoder.params)
    return tmp_path


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def reconfigure(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_random_encoder_depends_on_seed(encoder):
    again, other = random_encoder(seed=0, length=32), random_encoder(seed=1, length=32)
    same = jax.tree.map(np.array_equal, encoder.params, again.params)
    assert all(jax.tree.leaves(same))
    assert not np.array_equal(
        encoder.params["token_embedding"]["embedding"], other.params["token_embedding"]["embedding"]
    )
    named = load_encoder("random", length=32)
    assert named.width == 64 and named.length == 32


def test_embedding_shape_and_dtype():
    encoder = load_encoder("random", length=24, dtype=jnp.bfloat16)
    embeddings, mask = encoder(CAPTIONS)
    assert embeddings.shape == (3, 24, encoder.width) and embeddings.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(encoder.params))
    assert not embeddings[2].any() and not mask[2].any()


@pytest.mark.trap("text padding")
def test_padding_has_no_effect(encoder):
    short, mask = encoder(CAPTIONS)
    longer, _ = random_encoder(seed=0, length=64)(CAPTIONS)
    np.testing.assert_allclose(longer[:, :32], short, atol=1e-5)
    assert not longer[:, 32:].any() and mask.any()


def test_encoded_padding(encoder, folder):
    """Tokens are the same, padding is not zero, and a blank caption is the end of sequence."""
    for model in ("random", str(folder)):
        padded = load_encoder(model, length=32, padding="encoded")
        (plain, mask), (embeddings, padded_mask) = encoder(CAPTIONS), padded(CAPTIONS)
        np.testing.assert_array_equal(padded_mask[:2], mask[:2])
        np.testing.assert_array_equal(embeddings[:2][mask[:2]], plain[:2][mask[:2]])
        assert (np.abs(embeddings).max(axis=-1) > 0.01).all()
        assert padded_mask[2].sum() == 1 and padded.encode is not encoder.encode
        assert padded.fingerprint() == encoder.fingerprint()


def test_caption_length_does_not_recompile(encoder):
    # of its own: the encoder's program is shared by all of its shape
    encode = jax.jit(lambda *arguments: encoder.encode(*arguments))
    for caption in ("", "a", "a red circle", "é" * 500):
        encode(encoder.params, *encoder.tokenize([caption]))
    assert encode._cache_size() == 1


def test_save_and_load_round_trip(encoder, folder):
    loaded = load_encoder(str(folder), length=32)
    np.testing.assert_array_equal(loaded(CAPTIONS)[0], encoder(CAPTIONS)[0])


def fingerprint(folder, **changes):
    return load_encoder(str(folder), **{"length": 32, **changes}).fingerprint()


def test_fingerprint_of_copies_is_equal(encoder, folder):
    """Copies in other files, with another dtype, for another text length."""
    result = fingerprint(folder)
    assert result == encoder.fingerprint() == fingerprint(folder, length=8, dtype=jnp.bfloat16)
    assert len(result) == 32 and int(result, 16) > 0
    split_into_five(folder)
    assert fingerprint(folder) == result
    (folder / "model.safetensors.index.json").unlink()
    save_folder(folder, BYTE_T5, jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), encoder.params))
    assert fingerprint(folder) == result


def test_encoder_fingerprints_differ(folder):
    def change_one_weight(tensors):
        tensors["shared.weight"][200, 3] += 1

    result = {fingerprint(folder), random_encoder(seed=1, length=32).fingerprint()}
    reconfigure(folder, relative_attention_max_distance=64)  # no shape shows it
    result.add(fingerprint(folder))
    rewrite(folder, change_one_weight)
    result.add(fingerprint(folder))
    assert len(result) == 4


def test_bfloat16_weights(encoder, folder):
    def halve(tensors):
        tensors.update({name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()})

    rewrite(folder, halve)
    loaded = load_encoder(str(folder), length=32)
    kernel = loaded.params["block_0_attention"]["q"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, encoder.params["block_0_attention"]["q"]["kernel"], rtol=1e-2)


def test_decoder_and_embedding_alias_are_ignored(encoder, folder):
    def add(tensors):
        tensors["decoder.final_layer_norm.weight"] = np.ones(64, np.float32)
        tensors["lm_head.weight"] = np.ones((384, 64), np.float32)
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].copy()

    rewrite(folder, add)
    np.testing.assert_array_equal(load_encoder(str(folder), length=32)(CAPTIONS)[0], encoder(CAPTIONS)[0])
    rewrite(folder, lambda tensors: tensors.pop("shared.weight"))
    np.testing.assert_array_equal(load_encoder(str(folder), length=32)(CAPTIONS)[0], encoder(CAPTIONS)[0])


def split_into_five(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"model-{place % 5 + 1:05d}-of-00005.safetensors" for place, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_sharded_files_and_devices_are_equal(tmp_path):
    """The matrices are large enough to be sharded on either axis, along and across the order of the file."""
    fields = BYTE_T5 | {"d_kv": 32, "num_heads": 8, "d_ff": 256, "num_layers": 1}
    rng = np.random.default_rng(0)
    params_drawn = jax.tree.map(
        lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype), parameter_shapes(fields)
    )
    save_folder(tmp_path, fields, params_drawn)
    one = load_encoder(str(tmp_path), length=16).load(one_device())
    split_into_five(tmp_path)
    five = load_encoder(str(tmp_path), length=16)
    tokens, mask = five.tokenize(CAPTIONS)

    def assert_equal(ours, theirs):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)

    assert_equal(one, params_drawn)
    assert_equal(five.load(one_device()), params_drawn)
    expected = jax.jit(five.encode)(one, tokens, mask)
    for mesh in (eight_devices(), split_devices()):
        params = five.load(mesh)
        assert_equal(params, params_drawn)
        np.testing.assert_allclose(jax.jit(five.encode)(params, tokens, mask), expected, atol=1e-5)
    attention, feed_forward = params["block_0_attention"], params["block_0_feed_forward"]
    for kernel, axis in [(attention["q"], 1), (attention["o"], 0), (feed_forward["wi_0"], 1), (feed_forward["wo"], 0)]:
        assert kernel["kernel"].sharding.spec[axis] == "fsdp"


@pytest.mark.parametrize("kind", ["relu", "gated-silu"])
@pytest.mark.parametrize("bias_per_layer", [False, True])
def test_round_trip_of_variants(tmp_path, kind, bias_per_layer):
    fields = BYTE_T5 | {"feed_forward_proj": kind, "relative_bias_per_layer": bias_per_layer}
    rng = np.random.default_rng(0)
    params_drawn = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), parameter_shapes(fields))
    save_folder(tmp_path, fields, params_drawn)
    assert read_config(tmp_path) == fields
    jax.tree.map(np.testing.assert_array_equal, load_encoder(str(tmp_path), length=16).params, params_drawn)


def test_weights_are_read_lazily(folder, encoder):
    loaded = load_encoder(str(folder), length=32)
    rewrite(folder, lambda tensors: tensors.update({"encoder.final_layer_norm.weight": np.full(64, 7, np.float32)}))
    assert (np.asarray(loaded.load(one_device())["final_norm"]["scale"]) == 7).all()


def test_tensor_mismatches_are_listed(folder):
    def spoil(tensors):
        del tensors["encoder.final_layer_norm.weight"]
        tensors["encoder.block.1.layer.1.layer_norm.weight"] = np.ones(64, np.int8)
        tensors["encoder.block.7.extra"] = np.ones(3, np.float32)
        tensors["encoder.block.0.layer.0.SelfAttention.q.weight"] = np.ones((64, 65), np.float32)

    rewrite(folder, spoil)
    with pytest.raises(ValueError) as caught:
        load_encoder(str(folder), length=32)
    for fault in (
        "missing encoder.final_layer_norm.weight",
        "unexpected encoder.block.7.extra",
        "encoder.block.0.layer.0.SelfAttention.q.weight is [64, 65], expected [64, 64]",
        "encoder.block.1.layer.1.layer_norm.weight is stored as I8, expected one of F64, F32, BF16, F16",
    ):
        assert fault in str(caught.value)


def test_missing_weight_shard_raises(folder):
    (folder / "model.safetensors").rename(folder / "part-1.safetensors")
    names = load_file(folder / "part-1.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "part-1.safetensors")}))
    load_encoder(str(folder), length=32)
    index.write_text(json.dumps({"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}))
    with pytest.raises(ValueError, match="files that are not in .*: part-2.safetensors"):
        load_encoder(str(folder), length=32)
    index.write_text(json.dumps({"weight_map": {"a": "../part-1.safetensors"}}))
    with pytest.raises(ValueError, match="files that are not in"):
        load_encoder(str(folder), length=32)
    index.write_text("{}")
    with pytest.raises(ValueError, match="not a safetensors index"):
        load_encoder(str(folder), length=32)


def test_damaged_safetensors_raise(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        load_encoder(str(folder), length=32)
    weights.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="header of 4,611"):
        load_encoder(str(folder), length=32)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_encoder(str(folder), length=32)


def header_of(**changes):
    """Returns a safetensors header for a tensor of four numbers, with changes."""
    return {"shared.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes}


@pytest.mark.parametrize(
    "header, said",
    [
        (header_of(data_offsets=[0, 2**40]), "not a complete safetensors file"),
        (header_of(data_offsets=[2**40, 2**40 + 16]), "not a complete safetensors file"),
        (header_of(data_offsets=[16, 0]), "not a complete safetensors file"),
        (header_of(data_offsets=[-16, 0]), "not a complete safetensors file"),
        (
            header_of() | {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
            "not a complete safetensors file",
        ),
        (
            header_of() | {"a": {"dtype": "F32", "shape": [3], "data_offsets": [4, 16]}},
            "not a complete safetensors file",
        ),
        (header_of(dtype="F64"), "not a complete safetensors file"),
        (header_of(dtype="OBJECT"), "not a complete safetensors file"),
        (header_of(shape=[2**62, 8]), "not a complete safetensors file"),
        (header_of(shape=[-4]), "not a complete safetensors file"),
        (header_of(dtype="I32"), "missing encoder.block.0"),
        (b"[" * 10**6, "not a complete safetensors file"),
        (b" " * (2**22 + 1), "header of 4,194,305 bytes"),
        (b"\xff\xfe{}", "not a complete safetensors file"),
    ],
    ids=lambda header: str(header)[:80],
)
def test_invalid_headers_raise(folder, header, said):
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(data).to_bytes(8, "little") + data + bytes(16))
    tracemalloc.start()
    with pytest.raises(ConfigError, match=said) as caught:
        load_encoder(str(folder), length=32)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500
    assert peak < 2**24


def test_mismatch_list_is_truncated(folder):
    rewrite(folder, lambda tensors: tensors.update({f"extra.{i}": np.ones(1, np.int8) for i in range(1000)}))
    with pytest.raises(ConfigError, match="unexpected extra.* and 995 more"):
        load_encoder(str(folder), length=32)


@pytest.mark.parametrize("spoilt", ["[" * 10**6, "[]", '"text"', "{", "\0"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_invalid_json_raises(folder, file, spoilt):
    (folder / file).write_text(spoilt)
    with pytest.raises(ConfigError) as caught:
        load_encoder(str(folder), length=32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["weights.pt", "pytorch_model.bin", "weights.npy", "model.safetensors"])
def test_file_instead_of_folder_raises(tmp_path, name):
    canary = tmp_path / "canary"
    (tmp_path / name).write_bytes(pickle.dumps(Touching(canary)))
    with pytest.raises(ConfigError, match="is a file, expected a folder"):
        load_encoder(str(tmp_path / name), length=32)
    with pytest.raises(ConfigError):
        load_encoder(str(tmp_path), length=32)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"} | BYTE_T5))
    with pytest.raises(ConfigError):
        load_encoder(str(tmp_path), length=32)
    assert not canary.exists()


class Touching:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_weights_raise(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="only pickled weights .pytorch_model.bin.* python -c '.*save_pretrained"):
        load_encoder(str(folder), length=32)
    assert not list(folder.glob("*.safetensors"))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match="neither model.safetensors nor"):
        load_encoder(str(folder), length=32)


@pytest.mark.parametrize("name", ["models/t5", 'it\'s "mine"', "$HOME \\ é 漢"])
def test_conversion_command_is_valid(name):
    python, flag, code = shlex.split(conversion_command(Path(name)))
    assert (python, flag) == ("python", "-c")
    constants = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert constants == [name, name]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"model_type": "bert"}, 'model_type "bert"'),
        ({"model_type": ["t5"]}, "model_type ...t5..., expected one of t5, mt5, umt5"),
        ({"feed_forward_proj": "gated-swish"}, "feed_forward_proj 'gated-swish'"),
        ({"feed_forward_proj": "relu"}, "missing encoder.block.0.layer.1.DenseReluDense.wi.weight"),
        ({"model_type": "umt5"}, "missing encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"),
        ({"d_kv": "16"}, "d_kv '16'"),
        ({"vocab_size": 300}, "shared.weight is .384, 64., expected .300, 64."),
        ({"num_layers": 3}, "missing encoder.block.2.layer.0.layer_norm.weight"),
    ],
)
def test_other_models_raise(folder, fields, message):
    reconfigure(folder, **fields)
    with pytest.raises(ValueError, match=message):
        load_encoder(str(folder), length=32)


def test_tokenizer_larger_than_embedding_raises(folder):
    rewrite(folder, lambda tensors: tensors.update({"shared.weight": tensors["shared.weight"][:300].copy()}))
    reconfigure(folder, vocab_size=300)
    with pytest.raises(ValueError, match="has 384 tokens, the embedding only 300"):
        load_encoder(str(folder), length=32)


def test_empty_folder_raises(tmp_path):
    with pytest.raises(ValueError, match="has no config.json"):
        load_encoder(str(tmp_path), length=32)
