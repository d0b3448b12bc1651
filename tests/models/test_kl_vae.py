"""The autoencoder and its discriminator."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.models.kl_vae import KLVAE, PatchDiscriminator

IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, 8, 12, 3)).astype(np.float32)


@pytest.mark.parametrize("mult", [(1,), (1, 2), (1, 2, 2)])
def test_latents_are_smaller_by_the_steps_between_levels(mult):
    network = KLVAE(3, 5, 4, mult, (1,) * len(mult), True, 2, jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), IMAGES)
    mean, log_variance = jax.eval_shape(partial(network.apply, method="encode"), params, IMAGES)
    factor = 2 ** (len(mult) - 1)
    assert mean.shape == log_variance.shape == (3, 8 // factor, 12 // factor, 5)
    assert jax.eval_shape(partial(network.apply, method="decode"), params, mean).shape == IMAGES.shape
    assert set(params["params"]) == {"encoder", "decoder"}


def test_scores_do_not_depend_on_the_batch():
    network = PatchDiscriminator(4, 2, 2, jnp.float32)
    params = jax.jit(network.init)(jax.random.key(0), IMAGES)
    scores = jax.jit(network.apply)(params, IMAGES)
    assert scores.shape == (3, 2, 3)
    np.testing.assert_allclose(network.apply(params, IMAGES[1:2])[0], scores[1], atol=1e-5)
