import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.models.t5 import T5Encoder, _relative_position_bucket
from tests.goldens.t5 import cases

TINY = {"vocab_size": 30, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 3}


@pytest.fixture(scope="module")
def golden():
    with np.load(cases.GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def params():
    tokens = jnp.ones((1, 4), jnp.int32)
    return T5Encoder(**TINY).init(jax.random.key(0), tokens, tokens > 0)["params"]


def encode(params, tokens, mask, **fields):
    return np.asarray(T5Encoder(**TINY, **fields).apply({"params": params}, tokens, mask))


def random_text(length, used, seed=0):
    tokens = np.random.default_rng(seed).integers(1, TINY["vocab_size"], (2, length)).astype(np.int32)
    return tokens, np.tile(np.arange(length) < used, (2, 1))


@pytest.mark.parametrize("name", cases.VARIANTS)
def test_matches_transformers(golden, name):
    ours = cases.embeddings(name, golden["tokens"], golden["mask"])
    assert cases.error(ours, golden[name]) < cases.TOLERANCE


@pytest.mark.parametrize("name", cases.VARIANTS)
def test_bfloat16_matches_transformers(golden, name):
    ours = cases.embeddings(name, golden["tokens"], golden["mask"], jnp.bfloat16)
    assert cases.cosines(ours, golden[name]).mean() > cases.COSINE


def test_padding_matches_transformers(golden):
    ours = cases.padded_embeddings(golden["padded/tokens"], golden["padded/mask"])
    assert ours.shape == (3, 77, 16) and not golden["padded/mask"].all()
    assert cases.error(ours, golden["padded"]) < cases.TOLERANCE


def test_encoded_padding_changes_no_token(params):
    tokens, mask = random_text(12, used=5)
    out, padded = encode(params, tokens, mask), encode(params, tokens, mask, encode_padding=True)
    np.testing.assert_array_equal(padded[mask], out[mask])
    assert (np.abs(padded[~mask]).max(axis=-1) > 0.1).all()


def test_buckets_match_transformers(golden):
    np.testing.assert_array_equal(cases.buckets(golden["offsets"]), golden["buckets"])


def test_buckets_are_symmetric_and_monotonic():
    distance = np.arange(1, 500)
    sizes = {"num_buckets": 16, "max_distance": 64}
    left, right = (_relative_position_bucket(sign * distance, **sizes) for sign in (-1, 1))
    np.testing.assert_array_equal(right, left + 8)
    assert (np.diff(left) >= 0).all() and left[0] == 1 and left[-1] == 7
    assert (left[distance >= 64] == 7).all()
    assert _relative_position_bucket(np.zeros(1, int), **sizes)[0] == 0


@pytest.mark.trap("text padding")
def test_padding_has_no_effect(params):
    tokens, mask = random_text(32, used=20)
    short = encode(params, tokens, mask)
    longer = np.pad(tokens, ((0, 0), (0, 32)), constant_values=7), np.pad(mask, ((0, 0), (0, 32)))
    np.testing.assert_allclose(encode(params, *longer)[:, :20], short[:, :20], atol=1e-6)


def test_masked_outputs_are_zero(params):
    tokens, mask = random_text(12, used=5)
    mask[1] = False
    out = encode(params, tokens, mask)
    assert np.isfinite(out).all()
    assert (out[~mask] == 0).all() and (out[mask] != 0).any()


def test_depends_on_order(params):
    tokens, mask = random_text(12, used=12)
    reversed_order = encode(params, tokens[:, ::-1], mask)[:, ::-1]
    assert np.abs(reversed_order - encode(params, tokens, mask)).max() > 1e-2


def test_bfloat16_is_close_to_float32(params):
    tokens, mask = random_text(12, used=9)
    exact = encode(params, tokens, mask)
    low_precision = encode(params, tokens, mask, dtype=jnp.bfloat16)
    assert low_precision.dtype == jnp.bfloat16
    assert np.abs(low_precision.astype(np.float32) - exact).max() < 0.1


def test_init_standard_deviations():
    fields = {"vocab_size": 500, "d_model": 64, "d_kv": 16, "d_ff": 256, "num_layers": 1, "num_heads": 8}
    tokens = jnp.ones((1, 4), jnp.int32)
    params = jax.jit(T5Encoder(**fields).init)(jax.random.key(0), tokens, tokens > 0)["params"]
    attention, feed_forward = params["block_0_attention"], params["block_0_feed_forward"]
    for leaf, std in [
        (params["token_embedding"]["embedding"], 1.0),
        (attention["q"]["kernel"], (64 * 16) ** -0.5),
        (attention["k"]["kernel"], 64**-0.5),
        (attention["v"]["kernel"], 64**-0.5),
        (attention["o"]["kernel"], (8 * 16) ** -0.5),
        (feed_forward["wi_0"]["kernel"], 64**-0.5),
        (feed_forward["wi_1"]["kernel"], 64**-0.5),
        (feed_forward["wo"]["kernel"], 256**-0.5),
    ]:
        assert float(jnp.std(leaf)) == pytest.approx(std, rel=0.05)


def test_unknown_feed_forward_proj_raises(params):
    with pytest.raises(ValueError, match="feed_forward_proj 'gated-swish'"):
        encode(params, *random_text(4, used=4), feed_forward_proj="gated-swish")
