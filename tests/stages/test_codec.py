"""Codecs of stages: latents of deviation 1, what is known of masked images, and the loss of both players."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.stages.codec import LATENTS, Codec
from imagen_jax.stages.codec_loss import DISCRIMINATOR, CodecBatch, CodecModel, scale_gradient
from tests.helpers.configs import codec_config

CONFIG = codec_config()
IMAGES = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def codec():
    """A codec with its parameters."""
    made = Codec.of(CONFIG.model, 3)
    params = jax.jit(made.init)(jax.random.key(0))
    return made, jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape), params)


def test_latents_are_normalized_and_decoded_as_they_were(codec):
    made, params = codec
    plain = {**params, LATENTS: {"mean": jnp.zeros(2), "std": jnp.ones(2)}}
    other = {**params, LATENTS: {"mean": jnp.array([0.5, -1.0]), "std": jnp.array([2.0, 0.1])}}
    encode, decode = jax.jit(made.encode), jax.jit(made.decode)
    latents = [encode(each, IMAGES) for each in (plain, other)]
    np.testing.assert_allclose(latents[1], (latents[0] - other[LATENTS]["mean"]) / other[LATENTS]["std"], atol=1e-5)
    np.testing.assert_allclose(decode(other, latents[1]), decode(plain, latents[0]), atol=1e-5)


def test_what_is_below_a_mask_is_not_seen(codec):
    made, params = codec
    mask = np.zeros((4, 8, 8, 1), np.float32)
    mask[:, 3:6, 2:5] = 1
    other = np.where(mask > 0, -IMAGES, IMAGES)
    encode = jax.jit(made.encode_known)
    (latents, small), (again, _) = (encode(params, images, mask) for images in (IMAGES, other))
    np.testing.assert_array_equal(latents, again)
    expected = np.zeros((4, 4, 4, 1))
    expected[:, 1:3, 1:3] = 1
    np.testing.assert_array_equal(small, expected)


def test_each_player_gets_the_gradient_of_its_own_loss():
    model = CodecModel.of(CONFIG)
    params = jax.jit(model.init)(jax.random.key(0))
    eps = np.zeros(model.latent_shape(IMAGES), np.float32)
    network = {name: value for name, value in params.items() if name != DISCRIMINATOR}

    @jax.jit
    def gradients(plays):
        batch = CodecBatch(IMAGES, eps, jnp.full(4, plays, jnp.float32))
        total = jax.grad(lambda params: model.loss(params, batch).loss.mean())(params)

        def hinge(opponent):
            return model.loss({**network, DISCRIMINATOR: opponent}, batch).hinge.mean()

        return total, jax.grad(hinge)(params[DISCRIMINATOR])

    (before, _), (after, own) = gradients(0.0), gradients(1.0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(before[DISCRIMINATOR]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after[DISCRIMINATOR], own)
    assert not np.allclose(before["decoder"]["out"]["kernel"], after["decoder"]["out"]["kernel"])


def test_gradient_of_each_example_has_a_norm_whatever_the_batch():
    scores = jnp.array([1.0, -30.0, 1e-3, 0.0])[:, None, None, None]

    def gradient(images, scores):
        return jax.grad(lambda x: jnp.mean(jnp.sum(scores * scale_gradient(x, 0.7), axis=(1, 2, 3))))(images)

    norms = jnp.sqrt(jnp.sum(jnp.square(gradient(IMAGES, scores)), axis=(1, 2, 3)))
    np.testing.assert_allclose(norms * 4, [0.7, 0.7, 0.7, 0.0], rtol=1e-5)
    np.testing.assert_allclose(gradient(IMAGES[:2], scores[:2]), 2 * gradient(IMAGES, scores)[:2], rtol=1e-5)
