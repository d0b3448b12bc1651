"""The hierarchical VAE as a function: what its latents and its image depend on, and that it is stable in bf16."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.models.hvae import HVAE
from imagen_jax.models.hvae_blocks import LOG_STD_LIMIT, MEAN_LIMIT
from imagen_jax.models.unet_base import no_constraint
from imagen_jax.variational.bounds import residual_kl

SIZE, BATCH = (8, 8), 2


def network(**changes):
    fields = {
        **{"image_channels": 1, "out_channels": 6, "channels": 8, "channel_mult": (1, 2), "num_res_blocks": (1, 0)},
        **{"latent_groups": (1, 2), "latent_channels": 3, "attention_types": ((), ("text",)), "head_channels": 8},
        **{"cond_dim_mult": 1, "text_pool_heads": 2, "num_groups": 4, "dtype": jnp.float32, "remat": "none"},
        "constrain": no_constraint,
    }
    return HVAE(**{**fields, **changes})


def inputs(model):
    keys = jax.random.split(jax.random.key(0), 9)
    x = jax.random.uniform(keys[0], (BATCH, *SIZE, 1), minval=-1)
    noise = tuple(
        jax.random.normal(key, (BATCH, *shape)) for key, shape in zip(keys[1:], model.latent_shapes(SIZE), strict=False)
    )
    return x, noise, jax.random.normal(keys[7], (BATCH, 4, 5)), jnp.ones((BATCH, 4), bool)


@functools.cache
def untrained(enlarges=False, **changes):
    model = network(**changes)
    x, *rest = inputs(model)
    condition = (x, jnp.zeros(BATCH)) if enlarges else ()
    return model, jax.jit(model.init)(jax.random.key(0), x, *rest, *condition)["params"]


@functools.cache
def perturbed(enlarges=False, **changes):
    """Parameters in which nothing is zero."""
    model, params = untrained(enlarges, **changes)
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32), params)


@functools.cache
def apply(**changes):
    model, params = perturbed(**changes)
    return jax.jit(functools.partial(model.apply, {"params": params}))


def test_groups_are_from_coarse_to_fine():
    model = network()
    assert model.latent_shapes(SIZE) == [(4, 4, 3), (4, 4, 3), (8, 8, 3)]
    x, noise, *text = inputs(model)
    output = apply()(x, noise, *text)
    assert output.pixels.shape == (BATCH, *SIZE, 6)
    assert [group.prior_noise.shape[1:] for group in output.groups] == model.latent_shapes(SIZE)


def test_untrained_posteriors_are_near_their_priors():
    """From far ones, divergences of a thousand bits would be the first that a run sees."""
    model, params = untrained()
    output = jax.jit(functools.partial(model.apply, {"params": params}))(*inputs(model))
    for group in output.groups:
        divergences = residual_kl(group.delta_mean, group.delta_log_std)
        assert 1e-5 < float(divergences.mean()) < 0.1


def test_prior_noise_of_an_image_decodes_to_it():
    x, noise, *text = inputs(network())
    encoded = apply()(x, noise, *text)
    decoded = apply()(None, tuple(group.prior_noise for group in encoded.groups), *text)
    np.testing.assert_allclose(decoded.pixels, encoded.pixels, atol=1e-4)
    assert decoded.groups[0].delta_mean == ()


def test_latents_and_text_change_the_image():
    x, noise, text, mask = inputs(network())
    base = apply()(None, noise, text, mask).pixels
    for index in range(3):
        other = tuple(-array if i == index else array for i, array in enumerate(noise))
        assert float(jnp.abs(apply()(None, other, text, mask).pixels - base).max()) > 1e-3
    assert float(jnp.abs(apply()(None, noise, -text, mask).pixels - base).max()) > 1e-3
    # examples do not depend on each other
    swapped = apply()(None, tuple(array[::-1] for array in noise), text[::-1], mask).pixels[::-1]
    np.testing.assert_allclose(swapped, base, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_bf16_is_stable(scale):
    """Whatever features become, latents and gradients are finite and bounded."""
    model, params = perturbed(dtype=jnp.bfloat16)
    x, noise, *text = inputs(model)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: scale * leaf if "_out" in jax.tree_util.keystr(path) else leaf, params
    )

    def loss(params):
        output = model.apply({"params": params}, x, noise, *text)
        means = sum(jnp.square(group.delta_mean).mean() for group in output.groups)
        return jnp.square(output.pixels).mean() + means, output.groups

    (value, groups), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert np.isfinite(value)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))
    for group in groups:
        assert group.delta_mean.dtype == group.prior_noise.dtype == jnp.float32
        assert float(jnp.abs(group.delta_mean).max()) <= MEAN_LIMIT
        assert float(jnp.abs(group.delta_log_std).max()) <= LOG_STD_LIMIT


def test_low_resolution_conditions_prior_and_posterior():
    model, _ = perturbed(enlarges=True, remat="full")
    x, noise, *text = inputs(model)
    level = jnp.zeros(BATCH)
    for image in (x, None):
        base = apply(enlarges=True, remat="full")(image, noise, *text, x, level)
        other = apply(enlarges=True, remat="full")(image, noise, *text, -x, level)
        assert float(jnp.abs(base.pixels - other.pixels).max()) > 1e-3
