import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.models.layers import (
    AdaGN,
    Attention,
    AttentionPooling,
    AttentionStack,
    FeedForward,
    GroupNorm32,
    InputSkip,
    LearnedPositionEmbedding,
    ResBlock,
    _centers,
    _cosine_basis,
    _masked_softmax,
    _sinusoidal_embedding,
    attend,
    conv,
    downsample,
    dropout,
    fold_in_keys,
    name_hash,
    patchify,
    unpatchify,
    upsample,
    upsample_conv,
)

TYPES = ["self", "self+text", "text"]
# Halves compile time; results are the same.
FAST_COMPILE = {"xla_backend_optimization_level": 0}
NUM_TOKENS = 3  # tokens in `captions`
POOLING = AttentionPooling(width=8, heads=2, dtype=jnp.float32)


@functools.cache
def attention(attention_type):
    return Attention(attention_type, head_channels=4, groups=4, mlp_ratio=0, dtype=jnp.float32)


@functools.cache
def compiled(module):
    return jax.jit(lambda params, *inputs: module.apply({"params": params}, *inputs), compiler_options=FAST_COMPILE)


@functools.cache
def compiled_block(block):
    def run(params, keys=None):
        return block.apply({"params": params}, X, EMBEDDING, keys)

    return jax.jit(run, compiler_options=FAST_COMPILE)


def random_params(module, *inputs):
    """Returns parameters as after some training: none is zero. Made without jax, which would compile each init."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.5 * rng.standard_normal(leaf.shape).astype(np.float32), shapes)


def with_init_params(module, layers, *inputs):
    """Returns random parameters, but those of `layers` as initialized: compiling all of init takes seconds."""
    init = module.init
    fresh = jax.jit(lambda key: {name: init(key, *inputs)["params"][name] for name in layers})(jax.random.key(0))
    return {**random_params(module, *inputs), **fresh}


def random_array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def captions(length, seed=1, padding=0.0):
    """Returns embeddings [2, length, 6] of NUM_TOKENS tokens followed by `padding`, and their mask."""
    text = np.full((2, length, 6), padding, np.float32)
    text[:, :NUM_TOKENS] = random_array(2, NUM_TOKENS, 6, seed=seed)
    return text, np.tile(np.arange(length) < NUM_TOKENS, (2, 1))


X = random_array(2, 4, 4, 8)
EMBEDDING = random_array(2, 6)


def text_modules():
    """Returns parameters (module, inputs before the text) for modules that read text."""
    return [pytest.param(POOLING, (), id="pooling")] + [
        pytest.param(attention(name), (X,), id=name) for name in TYPES if "text" in name
    ]


@pytest.mark.parametrize("module, inputs", text_modules())
@pytest.mark.trap("text padding")
def test_padding_has_no_effect(module, inputs):
    text, mask = captions(5)
    params = random_params(module, *inputs, text, mask)
    out = compiled(module)(params, *inputs, text, mask)
    np.testing.assert_allclose(compiled(module)(params, *inputs, *captions(5, padding=50.0)), out, atol=1e-5)
    np.testing.assert_allclose(compiled(module)(params, *inputs, *captions(9, padding=-7.0)), out, atol=1e-5)
    changed = compiled(module)(params, *inputs, *captions(5, seed=2))
    assert np.abs(changed - out).max() > 1e-2


@pytest.mark.parametrize("module, inputs", text_modules())
def test_dropped_text_is_finite_at_any_length(module, inputs):
    params = random_params(module, *inputs, *captions(5))
    short, long = (
        compiled(module)(params, *inputs, np.zeros((2, length, 6), np.float32), np.zeros((2, length), bool))
        for length in (5, 9)
    )
    assert np.isfinite(short).all()
    np.testing.assert_allclose(short, long, atol=1e-5)
    assert np.abs(short - compiled(module)(params, *inputs, *captions(5))).max() > 1e-2


def test_self_attention_ignores_text():
    params = random_params(attention("self"), X, *captions(5))
    first, second = (compiled(attention("self"))(params, X, *captions(5, seed=seed)) for seed in (1, 2))
    np.testing.assert_array_equal(first, second)


def test_text_attention_is_pointwise():
    """The output at a pixel depends on other pixels only through the norm, which a reflection preserves."""
    params = random_params(attention("text"), X, *captions(5))
    mirrored = compiled(attention("text"))(params, X[:, ::-1], *captions(5))
    np.testing.assert_allclose(mirrored[:, ::-1], compiled(attention("text"))(params, X, *captions(5)), atol=1e-5)


def attention_reference(params, text, mask):
    """Returns "self+text" attention in numpy, one example, head and pixel at a time."""

    def dense(name, value):
        return value @ params[name]["kernel"] + params[name]["bias"]

    def normalized(value, axes, scale):
        centered = value - value.mean(axes, keepdims=True)
        return centered / np.sqrt((centered**2).mean(axes, keepdims=True) + scale)

    out = np.zeros((2, 16, 8))
    for example in range(2):
        norm = params["norm"]["norm"]
        groups = normalized(X[example].reshape(16, 4, 2), (0, 2), 1e-5).reshape(16, 8)
        pixels = groups * norm["scale"] + norm["bias"]
        tokens = normalized(text[example][mask[example]], -1, 1e-6)
        tokens = tokens * params["text_norm"]["scale"] + params["text_norm"]["bias"]
        keys = np.concatenate([dense("key", pixels), dense("text_key", tokens)])
        values = np.concatenate([dense("value", pixels), dense("text_value", tokens)])
        for head in (slice(0, 4), slice(4, 8)):
            for pixel, query in enumerate(dense("query", pixels)[:, head]):
                weight = np.exp(keys[:, head] @ query / 2)
                out[example, pixel, head] = weight / weight.sum() @ values[:, head]
    return X + dense("out", out).reshape(X.shape)


def test_attention_matches_reference():
    module, (text, mask) = attention("self+text"), captions(5)
    params = random_params(module, X, text, mask)
    np.testing.assert_allclose(
        compiled(module)(params, X, text, mask), attention_reference(params, text, mask), atol=1e-4
    )


@pytest.mark.parametrize("attention_type", TYPES)
def test_attention_is_identity_at_init(attention_type):
    params = with_init_params(attention(attention_type), ["out"], X, *captions(5))
    np.testing.assert_array_equal(compiled(attention(attention_type))(params, X, *captions(5)), X)


def test_attention_with_mlp():
    module = Attention("self", head_channels=4, groups=4, mlp_ratio=2, dtype=jnp.float32)
    params = random_params(module, X, *captions(5))
    attended = compiled(attention("self"))({k: v for k, v in params.items() if k != "mlp"}, X, *captions(5))
    fed = compiled(FeedForward(2, 4, jnp.float32))(params["mlp"], attended)
    np.testing.assert_allclose(compiled(module)(params, X, *captions(5)), fed, atol=1e-4)


def test_stack_order():
    def stack(*attention_types):
        return AttentionStack(attention_types, head_channels=4, groups=4, mlp_ratio=0, dtype=jnp.float32)

    inputs = (X, *captions(5))
    params = random_params(stack("self", "text"), *inputs)
    assert set(params) == {"self_0", "text_1"}
    step = compiled(attention("self"))(params["self_0"], *inputs)
    step = compiled(attention("text"))(params["text_1"], step, *inputs[1:])
    np.testing.assert_allclose(compiled(stack("self", "text"))(params, *inputs), step, atol=1e-5)
    swapped = {"text_0": params["text_1"], "self_1": params["self_0"]}
    assert np.abs(compiled(stack("text", "self"))(swapped, *inputs) - step).max() > 1e-2
    np.testing.assert_array_equal(compiled(stack())({}, *inputs), X)


def test_stack_with_equal_types():
    twice = AttentionStack(("text", "text"), head_channels=4, groups=4, mlp_ratio=0, dtype=jnp.float32)
    assert set(random_params(twice, X, *captions(5))) == {"text_0", "text_1"}


def test_masked_softmax():
    logits = np.float32([[1.0, 2.0, 3.0], [5.0, 5.0, 900.0]])
    mask = np.asarray([[True, True, False], [True, True, False]])
    np.testing.assert_allclose(_masked_softmax(logits, mask), [[0.26894143, 0.7310586, 0], [0.5, 0.5, 0]], rtol=1e-5)
    np.testing.assert_allclose(_masked_softmax(logits, np.zeros_like(mask)), 1 / 3, rtol=1e-5)


@pytest.mark.parametrize("attention_type", ["self", "self+text"])
@pytest.mark.trap("float16 overflow")
def test_bfloat16_attention_is_finite(attention_type):
    params = random_params(attention(attention_type), X, *captions(5))
    for name in ("query", "key"):
        params[name]["kernel"] *= 500
    # most products of queries and keys exceed 65504
    pixels = GroupNorm32(4).apply({"params": params["norm"]}, X).reshape(2, 16, 8)
    query, key = (pixels @ params[name]["kernel"] for name in ("query", "key"))
    logits = np.einsum("bqk,bsk->bqs", query[..., :4], key[..., :4]) / 2
    assert np.mean(np.abs(logits) > np.finfo(np.float16).max) > 0.5
    out = compiled(dataclasses.replace(attention(attention_type), dtype=jnp.bfloat16))(params, X, *captions(5))
    assert np.isfinite(out).all()
    assert np.abs(out - X).max() > 1e-2


@pytest.mark.trap("float16 overflow")
def test_softmax_is_float32():
    """1/1000 is not representable in bfloat16, where a thousand of them do not sum to 1."""
    weights = _masked_softmax(jnp.zeros((1, 1000), jnp.bfloat16), jnp.ones((1, 1000), bool))
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)


def test_downsample_and_upsample():
    image = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    small, large = downsample(image), upsample(image)
    assert small.shape == (2, 2, 3, 3)
    np.testing.assert_allclose(small[1, 1, 2], image[1, 2:4, 4:6].mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(small.mean((1, 2)), image.mean((1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(large, image.repeat(2, axis=1).repeat(2, axis=2))
    np.testing.assert_array_equal(downsample(large), image)


def test_patchify():
    image = random_array(2, 4, 6, 3)
    patches = patchify(image, 2)
    assert patches.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(patches[1, 1, 2], image[1, 2:4, 4:6].ravel())
    np.testing.assert_array_equal(unpatchify(patches, 2), image)
    np.testing.assert_array_equal(patchify(image, 1), image)


@pytest.mark.parametrize("resample, size", [("", 4), ("down", 2), ("up", 8)])
def test_res_block_is_its_skip_at_init(resample, size):
    block = ResBlock(channels=8, groups=4, dropout=0.0, dtype=jnp.float32, resample=resample)
    params = with_init_params(block, ["conv_1"], X, EMBEDDING)
    out = compiled_block(block)(params)
    skip = {"": lambda x: x, "down": downsample, "up": upsample}[resample](X)
    assert out.shape == (2, size, size, 8)
    np.testing.assert_allclose(out, skip, atol=1e-6)
    changed = compiled_block(block)(random_params(block, X, EMBEDDING))
    assert np.abs(changed - skip).max() > 1e-2


def test_dropout_needs_keys():
    block = ResBlock(channels=8, groups=4, dropout=0.5, dtype=jnp.float32)
    params = random_params(block, X, EMBEDDING)
    run = compiled_block(block)
    keys = jax.random.split(jax.random.key(0), len(X))
    dropped = run(params, keys)
    np.testing.assert_array_equal(dropped, run(params, keys))
    # the mask of the second example does not depend on the key of the first
    changed = run(params, keys.at[0].set(jax.random.key(1)))
    assert np.abs(dropped - run(params))[0].max() > 1e-2
    assert np.abs(dropped - changed)[0].max() > 1e-2
    np.testing.assert_array_equal(dropped[1:], changed[1:])


def test_dropout_mask_depends_on_example_and_block():
    x, keys = jnp.ones((2, 5000)), jax.random.split(jax.random.key(0), 2)
    hashes = [name_hash(name) for name in ("down_0_res_0", "down_0_res_1")]
    first, other = (np.asarray(dropout(x, 0.2, fold_in_keys(keys, block_hash))) for block_hash in hashes)
    np.testing.assert_allclose(np.unique(first), [0, 1.25])
    assert (first == 0).mean() == pytest.approx(0.2, abs=0.02)
    for one, two in ((first[0], first[1]), (first[0], other[0])):
        assert ((one == 0) & (two == 0)).mean() == pytest.approx(0.04, abs=0.015)


@pytest.mark.parametrize("channels, groups", [(8, 4), (6, 4), (7, 4)])
def test_group_norm_groups_divide_channels(channels, groups):
    x = 3 + 5 * random_array(1, 4, 4, channels)
    out = np.asarray(
        GroupNorm32(groups).apply({"params": {"norm": {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)}}}, x)
    )
    used = int(np.gcd(channels, groups))
    grouped = out.reshape(16, used, channels // used)
    np.testing.assert_allclose(grouped.mean((0, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(grouped.std((0, 2)), 1, atol=1e-3)


def test_ada_gn():
    module = AdaGN(4, jnp.float32)
    params = random_params(module, X, random_array(2, 6))
    normed = np.asarray(compiled(GroupNorm32(4))(params["norm"], X))
    embedding = random_array(2, 6)
    dense = params["scale_shift"]
    scale, shift = np.split((embedding @ dense["kernel"] + dense["bias"])[:, None, None], 2, axis=-1)
    np.testing.assert_allclose(compiled(module)(params, X, embedding), normed * (1 + scale) + shift, atol=1e-4)


def test_feed_forward_is_identity_at_init():
    out, variables = jax.jit(FeedForward(3, 4, jnp.float32).init_with_output)(jax.random.key(0), X)
    np.testing.assert_array_equal(out, X)
    assert variables["params"]["hidden"]["kernel"].shape == (8, 24)


def test_sinusoidal_embedding_separates_levels():
    levels = jnp.linspace(0, 1, 101)
    embedded = np.asarray(_sinusoidal_embedding(levels, 16))
    assert embedded.shape == (101, 16)
    distances = np.linalg.norm(embedded[:, None] - embedded[None], axis=-1) + 9 * np.eye(101)
    assert distances.min() > 0.1
    np.testing.assert_allclose((embedded**2).sum(-1), 8, rtol=1e-4)  # sin² + cos² for each frequency


def test_input_skip():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 6, 3), np.float32)
    images = rng.standard_normal((2, 4, 6, 6), np.float32)
    embedding = jnp.zeros((2, 5))
    params = InputSkip().init(jax.random.key(0), x, images, embedding)["params"]
    np.testing.assert_allclose(InputSkip().apply({"params": params}, x, images, embedding), x, atol=1e-6)
    params["gain"]["bias"] = jnp.asarray([1.0, 1.0, 1.0, 0.5, 0.5, 2.0])
    out = InputSkip().apply({"params": params}, x, images, embedding)
    np.testing.assert_allclose(out, x + images[..., :3] + images[..., 3:] * [0.5, 0.5, 2.0], atol=1e-5)


@pytest.mark.parametrize("side", [4, 7])
def test_cosine_basis_is_complete(side):
    basis = np.asarray(_cosine_basis(_centers(side), side))
    np.testing.assert_allclose(basis.T @ basis, side * np.eye(side), atol=1e-5)


def test_position_embedding():
    positions = LearnedPositionEmbedding(cosines=3, dtype=jnp.float32)
    x = np.random.default_rng(1).standard_normal((2, 4, 6, 5)).astype(np.float32)
    params = positions.init(jax.random.key(0), x)["params"]
    rows, columns = (_cosine_basis(_centers(side), 3) for side in (4, 6))
    embedding = sum(rows[:, u, None, None] * columns[None, :, v, None] * params["waves"][u, v]
                  for u in range(3) for v in range(3))  # fmt: skip
    np.testing.assert_allclose(positions.apply({"params": params}, x), x + embedding, atol=1e-5)


def test_position_embedding_at_given_positions():
    embedding = LearnedPositionEmbedding(3, jnp.float32)
    params = embedding.init(jax.random.key(0), np.zeros((1, 4, 6, 5)))
    full = embedding.apply(params, np.zeros((1, 4, 6, 5)))
    rows, columns = (np.stack([_centers(side)] * 2) for side in (4, 6))
    # of one example a part, of the other that part mirrored
    columns = np.stack([columns[0, 2:5], columns[1, 2:5][::-1]])
    part = embedding.apply(params, np.zeros((2, 4, 3, 5)), (rows, columns))
    np.testing.assert_allclose(part[0], full[0, :, 2:5], atol=1e-5)
    np.testing.assert_allclose(part[1], full[0, :, 2:5][:, ::-1], atol=1e-5)


def test_position_embedding_at_another_size():
    params = LearnedPositionEmbedding(3, jnp.float32).init(jax.random.key(0), np.zeros((1, 3, 3, 4)))
    small, large = (
        np.asarray(LearnedPositionEmbedding(3, jnp.float32).apply(params, np.zeros((1, n, n, 4)))) for n in (3, 9)
    )
    np.testing.assert_allclose(small, large[:, 1::3, 1::3], atol=1e-5)


def test_upsample_conv_is_a_convolution_of_upsampled_images():
    x = np.random.default_rng(0).standard_normal((2, 5, 7, 3)).astype(np.float32)
    fused, plain = upsample_conv(4, "conv", jnp.float32), conv(4, "conv", jnp.float32)
    params = random_params(plain, upsample(x))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, random_params(fused, x))
    np.testing.assert_allclose(
        compiled(fused)(params, x), compiled(plain)(params, jax.jit(upsample)(x)), rtol=1e-5, atol=1e-5
    )


def test_attend_equals_softmax():
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((2, 3, length, 4)).astype(np.float32) * 5 for length in (NUM_TOKENS, 6, 6))
    mask = np.arange(6) < np.array([4, 0])[:, None, None, None]  # in the second example no key counts
    weights = _masked_softmax(jnp.einsum("bnqk,bnsk->bnqs", query, key) / 2, mask)
    expected = jnp.einsum("bnqs,bnsk->bnqk", weights, value)
    np.testing.assert_allclose(attend(query, key, value, mask), expected, rtol=1e-5, atol=1e-5)
