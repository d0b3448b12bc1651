"""What edited examples take over from their sources."""

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.models.attention_control import AttentionControl
from imagen_jax.models.layers import Attention

ATTENTION = Attention("self+text", head_channels=4, groups=4, mlp_ratio=0, dtype=jnp.float32)
B, SIDE, LENGTH = 4, 2, 3


def control(text=0.0, pixels=0.0, alignment=None):
    alignment = np.broadcast_to(np.eye(LENGTH) if alignment is None else alignment, (B, LENGTH, LENGTH))
    return AttentionControl(jnp.asarray(alignment, jnp.float32), jnp.full(B, text), jnp.full(B, pixels))


def weights(seed=0):
    return jax.nn.softmax(jax.random.normal(jax.random.key(seed), (B, 2, SIDE**2, SIDE**2 + LENGTH)))


def test_sources_keep_their_weights_to_the_bit():
    np.testing.assert_array_equal(control(1.0, 1.0).inject(weights(), LENGTH)[::2], weights()[::2])


def test_without_shares_nothing_changes():
    np.testing.assert_array_equal(control().inject(weights(), LENGTH), weights())


def test_all_weights_are_taken_over():
    injected = control(1.0, 1.0).inject(weights(), LENGTH)
    np.testing.assert_allclose(injected[1::2], weights()[::2], rtol=1e-6)


def test_rows_sum_to_one_and_pixels_keep_their_ratios():
    injected, own = (np.asarray(array) for array in (control(text=1.0).inject(weights(), LENGTH), weights()))
    np.testing.assert_allclose(injected.sum(-1), 1, rtol=1e-6)
    ratio = injected[1::2, ..., :-LENGTH] / own[1::2, ..., :-LENGTH]
    np.testing.assert_allclose(ratio, ratio[..., :1] * np.ones(SIDE**2), rtol=1e-5)


def test_new_words_keep_their_own_share():
    alignment = np.eye(LENGTH)
    alignment[1, 1] = 0
    injected = np.asarray(control(1.0, 0.0, alignment).inject(weights(), LENGTH))[1::2, ..., -LENGTH:]
    before = np.asarray(weights())[..., -LENGTH:]
    # up to the scale of their row
    np.testing.assert_allclose(
        injected[..., 1] / injected[..., 0], before[1::2, ..., 1] / before[::2, ..., 0], rtol=1e-5
    )


def test_the_unconditional_half_takes_nothing_over():
    doubled = control(1.0, 1.0).with_unconditional()
    both = jnp.concatenate([weights(), weights(1)])
    injected = doubled.inject(both, LENGTH)
    np.testing.assert_array_equal(injected[B:], both[B:])
    np.testing.assert_array_equal(injected[:B], control(1.0, 1.0).inject(weights(), LENGTH))


def test_an_edited_example_attends_as_its_source():
    x = jax.random.normal(jax.random.key(1), (2, SIDE, SIDE, 8))
    text, mask = jax.random.normal(jax.random.key(2), (2, LENGTH, 5)), jnp.ones((2, LENGTH), bool)
    params = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape),
        ATTENTION.init(jax.random.key(0), x, text, mask),
    )
    pair = AttentionControl(jnp.broadcast_to(jnp.eye(LENGTH), (2, LENGTH, LENGTH)), jnp.ones(2), jnp.ones(2))
    apply = jax.jit(ATTENTION.apply)
    plain, edited = apply(params, x, text, mask), apply(params, x, text, mask, pair)
    np.testing.assert_allclose(edited[0], plain[0], atol=1e-5)
    assert np.abs(edited[1] - plain[1]).max() > 0.1
    # the same values, weighted as the source's: as if the source were given them
    same = apply(params, x[:1].repeat(2, 0), text[:1].repeat(2, 0), mask, pair)
    np.testing.assert_allclose(same[1], plain[0], atol=1e-5)
