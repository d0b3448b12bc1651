import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagen_jax.text.encoder import RANDOM_CONFIG, load_encoder, random_encoder
from imagen_jax.text.huggingface import save_folder

CAPTIONS = ["red circle, blue square", "blue circle, red square", ""]
CONFIG = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
} | RANDOM_CONFIG


@pytest.fixture(scope="module")
def encoder():
    return random_encoder(seed=0, length=32)


@pytest.fixture
def folder(tmp_path, encoder):
    save_folder(tmp_path, CONFIG, encoder.params)
    return tmp_path


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def reconfigure(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_random_encoder_is_reproducible_from_its_seed(encoder):
    again, other = random_encoder(seed=0, length=32), random_encoder(seed=1, length=32)
    same = jax.tree.map(np.array_equal, encoder.params, again.params)
    assert all(jax.tree.leaves(same))
    assert not np.array_equal(
        encoder.params["token_embedding"]["embedding"], other.params["token_embedding"]["embedding"]
    )
    named = load_encoder("random", length=32)
    assert named.width == 64 and named.length == 32


def test_embeddings_have_the_promised_shape_and_dtype():
    encoder = load_encoder("random", length=24, dtype=jnp.bfloat16)
    embeddings, mask = encoder(CAPTIONS)
    assert embeddings.shape == (3, 24, encoder.width) and embeddings.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(encoder.params))
    assert not embeddings[2].any() and not mask[2].any()


def test_no_gradient_reaches_the_encoder(encoder):
    tokens, mask = encoder.tokenize(CAPTIONS)
    gradient = jax.grad(lambda params: encoder.encode(params, tokens, mask).sum())(encoder.params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_longer_padding_changes_nothing(encoder):
    short, mask = encoder(CAPTIONS)
    longer, _ = random_encoder(seed=0, length=64)(CAPTIONS)
    np.testing.assert_allclose(longer[:, :32], short, atol=1e-5)
    assert not longer[:, 32:].any() and mask.any()


def test_a_saved_folder_gives_the_same_embeddings(encoder, folder):
    loaded = load_encoder(str(folder), length=32)
    np.testing.assert_array_equal(loaded(CAPTIONS)[0], encoder(CAPTIONS)[0])


def test_weights_in_bfloat16_are_read(encoder, folder):
    def halve(tensors):
        tensors.update({name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()})

    rewrite(folder, halve)
    loaded = load_encoder(str(folder), length=32)
    kernel = loaded.params["block_0_attention"]["q"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, encoder.params["block_0_attention"]["q"]["kernel"], rtol=1e-2)


def test_a_decoder_and_a_copy_of_the_embedding_beside_the_encoder_are_fine(encoder, folder):
    def add(tensors):
        tensors["decoder.final_layer_norm.weight"] = np.ones(64, np.float32)
        tensors["lm_head.weight"] = np.ones((384, 64), np.float32)
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].copy()

    rewrite(folder, add)
    np.testing.assert_array_equal(load_encoder(str(folder), length=32)(CAPTIONS)[0], encoder(CAPTIONS)[0])
    rewrite(folder, lambda tensors: tensors.pop("shared.weight"))
    np.testing.assert_array_equal(load_encoder(str(folder), length=32)(CAPTIONS)[0], encoder(CAPTIONS)[0])


def test_missing_surplus_and_misshapen_tensors_are_listed(folder):
    def spoil(tensors):
        del tensors["encoder.final_layer_norm.weight"]
        tensors["encoder.block.7.extra"] = np.ones(3, np.float32)
        tensors["encoder.block.0.layer.0.SelfAttention.q.weight"] = np.ones((64, 65), np.float32)

    rewrite(folder, spoil)
    with pytest.raises(ValueError) as caught:
        load_encoder(str(folder), length=32)
    for fault in (
        "missing encoder.final_layer_norm.weight",
        "surplus encoder.block.7.extra",
        "encoder.block.0.layer.0.SelfAttention.q.weight is [64, 65], expected [64, 64]",
    ):
        assert fault in str(caught.value)


def test_sharded_weights_need_every_file(folder):
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


def test_broken_files_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_encoder(str(folder), length=32)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_encoder(str(folder), length=32)


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="only pickled weights .pytorch_model.bin.*save_pretrained"):
        load_encoder(str(folder), length=32)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match="neither model.safetensors nor"):
        load_encoder(str(folder), length=32)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"model_type": "bert"}, 'model_type is "bert"'),
        ({"feed_forward_proj": "relu"}, 'feed_forward_proj is "relu"'),
        ({"vocab_size": 300}, "shared.weight is .384, 64., expected .300, 64."),
        ({"num_layers": 3}, "missing encoder.block.2.layer.0.layer_norm.weight"),
    ],
)
def test_other_models_are_refused(folder, fields, message):
    reconfigure(folder, **fields)
    with pytest.raises(ValueError, match=message):
        load_encoder(str(folder), length=32)


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(folder):
    rewrite(folder, lambda tensors: tensors.update({"shared.weight": tensors["shared.weight"][:300].copy()}))
    reconfigure(folder, vocab_size=300)
    with pytest.raises(ValueError, match="has 384 tokens, the embedding only 300"):
        load_encoder(str(folder), length=32)


def test_hub_names_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match='"google/t5-v1_1-xxl" is neither'):
        load_encoder("google/t5-v1_1-xxl", length=32)
    with pytest.raises(ValueError, match="has no config.json"):
        load_encoder(str(tmp_path), length=32)
