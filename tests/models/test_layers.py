import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.models.layers import (
    Attention,
    AttentionStack,
    FeedForward,
    InputSkip,
    ModulatedNorm,
    Norm,
    Positions,
    ResBlock,
    TextPooling,
    cosine_basis,
    downsample,
    drop,
    from_patches,
    keys_of_place,
    masked_softmax,
    place_number,
    sinusoidal_embedding,
    to_patches,
    upsample,
)

KINDS = ["self", "self+text", "text"]
# Half the time to compile, and the same mathematics.
QUICKLY = {"xla_backend_optimization_level": 0}
SHOWN = 3  # tokens of the captions below
POOLING = TextPooling(width=8, heads=2, dtype=jnp.float32)


@functools.cache
def attention(kind):
    return Attention(kind, head_channels=4, groups=4, mlp=0, dtype=jnp.float32)


@functools.cache
def compiled(module):
    return jax.jit(lambda params, *inputs: module.apply({"params": params}, *inputs), compiler_options=QUICKLY)


@functools.cache
def block_run(block):
    def run(params, keys=None):
        return block.apply({"params": params}, X, EMBEDDING, keys)

    return jax.jit(run, compiler_options=QUICKLY)


def random_params(module, *inputs):
    """Parameters as after some training: none is zero. Drawn outside of jax, which would compile each init."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.5 * rng.standard_normal(leaf.shape).astype(np.float32), shapes)


def with_fresh(module, layers, *inputs):
    """Random parameters, but those of ``layers`` as init makes them: all of init would take seconds to compile."""
    init = module.init
    fresh = jax.jit(lambda key: {name: init(key, *inputs)["params"][name] for name in layers})(jax.random.key(0))
    return {**random_params(module, *inputs), **fresh}


def some(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def captions(length, seed=1, padding=0.0):
    """Embeddings [2, length, 6] of SHOWN tokens, ``padding`` behind them, and their mask."""
    text = np.full((2, length, 6), padding, np.float32)
    text[:, :SHOWN] = some(2, SHOWN, 6, seed=seed)
    return text, np.tile(np.arange(length) < SHOWN, (2, 1))


X = some(2, 4, 4, 8)
EMBEDDING = some(2, 6)


def readers():
    """What looks at text: (module, the inputs before the text)."""
    return [pytest.param(POOLING, (), id="pooling")] + [
        pytest.param(attention(kind), (X,), id=kind) for kind in KINDS if "text" in kind
    ]


@pytest.mark.parametrize("module, inputs", readers())
def test_padding_changes_nothing(module, inputs):
    text, mask = captions(5)
    params = random_params(module, *inputs, text, mask)
    out = compiled(module)(params, *inputs, text, mask)
    np.testing.assert_allclose(compiled(module)(params, *inputs, *captions(5, padding=50.0)), out, atol=1e-5)
    np.testing.assert_allclose(compiled(module)(params, *inputs, *captions(9, padding=-7.0)), out, atol=1e-5)
    changed = compiled(module)(params, *inputs, *captions(5, seed=2))
    assert np.abs(changed - out).max() > 1e-2


@pytest.mark.parametrize("module, inputs", readers())
def test_a_dropped_caption_is_finite_and_of_no_length(module, inputs):
    params = random_params(module, *inputs, *captions(5))
    short, long = (
        compiled(module)(params, *inputs, np.zeros((2, length, 6), np.float32), np.zeros((2, length), bool))
        for length in (5, 9)
    )
    assert np.isfinite(short).all()
    np.testing.assert_allclose(short, long, atol=1e-5)
    assert np.abs(short - compiled(module)(params, *inputs, *captions(5))).max() > 1e-2


def test_self_attention_does_not_see_the_text():
    params = random_params(attention("self"), X, *captions(5))
    first, second = (compiled(attention("self"))(params, X, *captions(5, seed=seed)) for seed in (1, 2))
    np.testing.assert_array_equal(first, second)


def test_text_attention_does_not_look_at_other_pixels():
    """Its output at a pixel depends on the pixels of others only through the norm; without it, not at all."""
    params = random_params(attention("text"), X, *captions(5))
    mirrored = compiled(attention("text"))(params, X[:, ::-1], *captions(5))
    np.testing.assert_allclose(mirrored[:, ::-1], compiled(attention("text"))(params, X, *captions(5)), atol=1e-5)


def by_hand(params, text, mask):
    """Attention of kind "self+text" in numpy, an example, a head and a pixel at a time."""

    def dense(name, value):
        return value @ params[name]["kernel"] + params[name]["bias"]

    def normalised(value, axes, scale):
        centred = value - value.mean(axes, keepdims=True)
        return centred / np.sqrt((centred**2).mean(axes, keepdims=True) + scale)

    out = np.zeros((2, 16, 8))
    for example in range(2):
        norm = params["norm"]["norm"]
        groups = normalised(X[example].reshape(16, 4, 2), (0, 2), 1e-5).reshape(16, 8)
        pixels = groups * norm["scale"] + norm["bias"]
        words = normalised(text[example][mask[example]], -1, 1e-6)
        words = words * params["text_norm"]["scale"] + params["text_norm"]["bias"]
        keys = np.concatenate([dense("key", pixels), dense("text_key", words)])
        values = np.concatenate([dense("value", pixels), dense("text_value", words)])
        for head in (slice(0, 4), slice(4, 8)):
            for pixel, query in enumerate(dense("query", pixels)[:, head]):
                weight = np.exp(keys[:, head] @ query / 2)
                out[example, pixel, head] = weight / weight.sum() @ values[:, head]
    return X + dense("out", out).reshape(X.shape)


def test_attention_is_what_its_definition_says():
    module, (text, mask) = attention("self+text"), captions(5)
    params = random_params(module, X, text, mask)
    np.testing.assert_allclose(compiled(module)(params, X, text, mask), by_hand(params, text, mask), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_starts_as_the_identity(kind):
    params = with_fresh(attention(kind), ["out"], X, *captions(5))
    np.testing.assert_array_equal(compiled(attention(kind))(params, X, *captions(5)), X)


def test_a_feed_forward_layer_can_follow_attention():
    module = Attention("self", head_channels=4, groups=4, mlp=2, dtype=jnp.float32)
    params = random_params(module, X, *captions(5))
    attended = compiled(attention("self"))({k: v for k, v in params.items() if k != "mlp"}, X, *captions(5))
    fed = compiled(FeedForward(2, 4, jnp.float32))(params["mlp"], attended)
    np.testing.assert_allclose(compiled(module)(params, X, *captions(5)), fed, atol=1e-4)


def test_a_stack_applies_its_layers_in_order():
    def stack(*kinds):
        return AttentionStack(kinds, head_channels=4, groups=4, mlp=0, dtype=jnp.float32)

    inputs = (X, *captions(5))
    params = random_params(stack("self", "text"), *inputs)
    assert set(params) == {"self_0", "text_1"}
    step = compiled(attention("self"))(params["self_0"], *inputs)
    step = compiled(attention("text"))(params["text_1"], step, *inputs[1:])
    np.testing.assert_allclose(compiled(stack("self", "text"))(params, *inputs), step, atol=1e-5)
    swapped = {"text_0": params["text_1"], "self_1": params["self_0"]}
    assert np.abs(compiled(stack("text", "self"))(swapped, *inputs) - step).max() > 1e-2
    np.testing.assert_array_equal(compiled(stack())({}, *inputs), X)


def test_a_stack_may_have_two_layers_of_a_kind():
    twice = AttentionStack(("text", "text"), head_channels=4, groups=4, mlp=0, dtype=jnp.float32)
    assert set(random_params(twice, X, *captions(5))) == {"text_0", "text_1"}


def test_masked_softmax_shows_what_the_mask_shows():
    logits = np.float32([[1.0, 2.0, 3.0], [5.0, 5.0, 900.0]])
    mask = np.asarray([[True, True, False], [True, True, False]])
    np.testing.assert_allclose(masked_softmax(logits, mask), [[0.26894143, 0.7310586, 0], [0.5, 0.5, 0]], rtol=1e-5)
    np.testing.assert_allclose(masked_softmax(logits, np.zeros_like(mask)), 1 / 3, rtol=1e-5)


@pytest.mark.parametrize("kind", ["self", "self+text"])
def test_attention_in_bfloat16_is_finite_where_float16_would_overflow(kind):
    params = random_params(attention(kind), X, *captions(5))
    for name in ("query", "key"):
        params[name]["kernel"] *= 500
    # most products of queries and keys are beyond 65504
    pixels = Norm(4).apply({"params": params["norm"]}, X).reshape(2, 16, 8)
    query, key = (pixels @ params[name]["kernel"] for name in ("query", "key"))
    logits = np.einsum("bqk,bsk->bqs", query[..., :4], key[..., :4]) / 2
    assert np.mean(np.abs(logits) > np.finfo(np.float16).max) > 0.5
    out = compiled(dataclasses.replace(attention(kind), dtype=jnp.bfloat16))(params, X, *captions(5))
    assert np.isfinite(out).all()
    assert np.abs(out - X).max() > 1e-2


def test_softmax_is_computed_in_float32():
    """1/1000 is no bfloat16, and in bfloat16 a thousand of them would not add up to 1."""
    weights = masked_softmax(jnp.zeros((1, 1000), jnp.bfloat16), jnp.ones((1, 1000), bool))
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


def test_a_patch_is_a_square_of_pixels():
    image = some(2, 4, 6, 3)
    patches = to_patches(image, 2)
    assert patches.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(patches[1, 1, 2], image[1, 2:4, 4:6].ravel())
    np.testing.assert_array_equal(from_patches(patches, 2), image)
    np.testing.assert_array_equal(to_patches(image, 1), image)


@pytest.mark.parametrize("resample, size", [("", 4), ("down", 2), ("up", 8)])
def test_a_residual_block_starts_as_its_skip(resample, size):
    block = ResBlock(channels=8, groups=4, dropout=0.0, dtype=jnp.float32, resample=resample)
    params = with_fresh(block, ["conv_1"], X, EMBEDDING)
    out = block_run(block)(params)
    skip = {"": lambda x: x, "down": downsample, "up": upsample}[resample](X)
    assert out.shape == (2, size, size, 8)
    np.testing.assert_allclose(out, skip, atol=1e-6)
    changed = block_run(block)(random_params(block, X, EMBEDDING))
    assert np.abs(changed - skip).max() > 1e-2


def test_dropout_is_for_training_alone():
    block = ResBlock(channels=8, groups=4, dropout=0.5, dtype=jnp.float32)
    params = random_params(block, X, EMBEDDING)
    run = block_run(block)
    keys = jax.random.split(jax.random.key(0), len(X))
    dropped = run(params, keys)
    np.testing.assert_array_equal(dropped, run(params, keys))
    # each example's is its own: another key of the first is nothing to the second
    changed = run(params, keys.at[0].set(jax.random.key(1)))
    assert np.abs(dropped - run(params))[0].max() > 1e-2
    assert np.abs(dropped - changed)[0].max() > 1e-2
    np.testing.assert_array_equal(dropped[1:], changed[1:])


def test_what_is_dropped_is_a_share_that_differs_by_example_and_place():
    x, keys = jnp.ones((2, 5000)), jax.random.split(jax.random.key(0), 2)
    places = [place_number(name) for name in ("down_0_res_0", "down_0_res_1")]
    first, other = (np.asarray(drop(x, 0.2, keys_of_place(keys, place))) for place in places)
    np.testing.assert_allclose(np.unique(first), [0, 1.25])
    assert (first == 0).mean() == pytest.approx(0.2, abs=0.02)
    for one, two in ((first[0], first[1]), (first[0], other[0])):
        assert ((one == 0) & (two == 0)).mean() == pytest.approx(0.04, abs=0.015)


@pytest.mark.parametrize("channels, groups", [(8, 4), (6, 4), (7, 4)])
def test_norm_takes_as_many_groups_as_divide_the_channels(channels, groups):
    x = 3 + 5 * some(1, 4, 4, channels)
    out = np.asarray(
        Norm(groups).apply({"params": {"norm": {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)}}}, x)
    )
    used = int(np.gcd(channels, groups))
    grouped = out.reshape(16, used, channels // used)
    np.testing.assert_allclose(grouped.mean((0, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(grouped.std((0, 2)), 1, atol=1e-3)


def test_a_modulated_norm_is_scaled_and_shifted_by_its_embedding():
    module = ModulatedNorm(4, jnp.float32)
    params = random_params(module, X, some(2, 6))
    plain = np.asarray(compiled(Norm(4))(params["norm"], X))
    embedding = some(2, 6)
    dense = params["scale_shift"]
    scale, shift = np.split((embedding @ dense["kernel"] + dense["bias"])[:, None, None], 2, axis=-1)
    np.testing.assert_allclose(compiled(module)(params, X, embedding), plain * (1 + scale) + shift, atol=1e-4)


def test_a_feed_forward_layer_starts_as_the_identity():
    out, variables = jax.jit(FeedForward(3, 4, jnp.float32).init_with_output)(jax.random.key(0), X)
    np.testing.assert_array_equal(out, X)
    assert variables["params"]["hidden"]["kernel"].shape == (8, 24)


def test_noise_levels_are_told_apart():
    levels = jnp.linspace(0, 1, 101)
    embedded = np.asarray(sinusoidal_embedding(levels, 16))
    assert embedded.shape == (101, 16)
    distances = np.linalg.norm(embedded[:, None] - embedded[None], axis=-1) + 9 * np.eye(101)
    assert distances.min() > 0.1
    np.testing.assert_allclose((embedded**2).sum(-1), 8, rtol=1e-4)  # a sine and a cosine of each frequency


def test_a_fresh_input_skip_passes_nothing_and_a_learned_one_every_image():
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
def test_as_many_cosines_as_pixels_make_any_picture(side):
    basis = np.asarray(cosine_basis(side, side))
    np.testing.assert_allclose(basis.T @ basis, side * np.eye(side), atol=1e-5)


def test_positions_add_the_sum_of_their_waves_to_every_image():
    positions = Positions(cosines=3, dtype=jnp.float32)
    x = np.random.default_rng(1).standard_normal((2, 4, 6, 5)).astype(np.float32)
    params = positions.init(jax.random.key(0), x)["params"]
    rows, columns = cosine_basis(4, 3), cosine_basis(6, 3)
    picture = sum(rows[:, u, None, None] * columns[None, :, v, None] * params["waves"][u, v]
                  for u in range(3) for v in range(3))  # fmt: skip
    np.testing.assert_allclose(positions.apply({"params": params}, x), x + picture, atol=1e-5)


def test_positions_of_an_image_are_those_of_the_same_places_at_another_size():
    params = Positions(3, jnp.float32).init(jax.random.key(0), np.zeros((1, 3, 3, 4)))
    small, large = (np.asarray(Positions(3, jnp.float32).apply(params, np.zeros((1, n, n, 4)))) for n in (3, 9))
    np.testing.assert_allclose(small, large[:, 1::3, 1::3], atol=1e-5)
