"""Counted by hand, and the same however the products are wrapped."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from imagen_jax.planning.flops import count_flops
from tests.helpers.configs import one_device

A, B = jnp.zeros((3, 5)), jnp.zeros((5, 7))
ONE = 2 * 3 * 5 * 7


def product(a=A, b=B):
    return a @ b


def flops(function, *arguments):
    return count_flops(jax.make_jaxpr(function)(*arguments))


def test_a_product_of_matrices():
    assert flops(product, A, B) == ONE


def test_products_of_a_batch_summed_over_two_axes():
    def attend(q, k):
        return jnp.einsum("bqnk,bsnk->bqs", q, k)

    assert flops(attend, jnp.zeros((2, 3, 4, 5)), jnp.zeros((2, 7, 4, 5))) == 2 * (2 * 3 * 7) * (4 * 5)


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"padding": "SAME"}, 2 * (2 * 8 * 8 * 12) * (3 * 3 * 6)),
        ({"padding": "VALID"}, 2 * (2 * 6 * 6 * 12) * (3 * 3 * 6)),
        ({"padding": "SAME", "window_strides": (2, 2)}, 2 * (2 * 4 * 4 * 12) * (3 * 3 * 6)),
        ({"padding": "SAME", "feature_group_count": 2}, 2 * (2 * 8 * 8 * 12) * (3 * 3 * 3)),
        ({"padding": "SAME", "batch_group_count": 2}, 2 * (1 * 8 * 8 * 12) * (3 * 3 * 6)),
    ],
    ids=["same", "valid", "strided", "grouped", "batch-grouped"],
)
def test_a_convolution(settings, expected):
    settings = {"window_strides": (1, 1), **settings}
    kernel = jnp.zeros((3, 3, 6 // settings.get("feature_group_count", 1), 12))

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **settings)

    assert flops(convolve, jnp.zeros((2, 8, 8, 6)), kernel) == expected


def scanned(a, b):
    return jax.lax.scan(lambda carry, _: (carry, product(a, b)), 0, length=11)[1]


def branched(a, b):
    return jax.lax.cond(a.sum() > 0, product, lambda a, b: product(a, b) + a @ b, a, b)


@jax.custom_vjp
def with_a_gradient_of_its_own(a, b):
    return product(a, b)


with_a_gradient_of_its_own.defvjp(lambda a, b: (product(a, b), None), lambda _, g: (g, g))


@pytest.mark.parametrize(
    "function, times",
    [
        (jax.jit(product), 1),
        (jax.checkpoint(product), 1),
        (with_a_gradient_of_its_own, 1),
        (jax.vmap(product, in_axes=(None, 1), out_axes=1), 1),
        (scanned, 11),
        (branched, 2),
        (jax.jit(lambda a, b: scanned(a, b).sum() + branched(a, b)), 13),
        (lambda a, b: jnp.tanh(a).sum() + jnp.sort(b), 0),
    ],
    ids=["jit", "remat", "custom-vjp", "vmap", "scan", "cond", "nested", "no-product"],
)
def test_what_is_nested_counts_as_often_as_it_runs(function, times):
    assert flops(function, A, B) == times * ONE


def test_a_gradient_is_two_products_more():
    def loss(a, b):
        return jnp.sum(jnp.sin(product(a, b)))

    assert flops(jax.grad(loss, argnums=(0, 1)), A, B) == 3 * ONE


def test_a_loop_counts_only_where_its_length_is_known():
    def turn(until):
        return lambda a, b: jax.lax.fori_loop(0, until(a), lambda _, x: x @ x.T @ x, product(a, b))

    x_flops = 2 * (2 * 3 * 7 * 3)
    assert flops(turn(lambda a: 4), A, B) == ONE + 4 * x_flops
    with pytest.raises(ValueError, match="how often it turns is not known"):
        flops(turn(lambda a: a.astype(int).sum()), A, B)


def test_what_cannot_be_seen_into_is_refused():
    whole = PartitionSpec()
    a_device = jax.shard_map(product, mesh=one_device(), in_specs=(whole, whole), out_specs=whole)
    with pytest.raises(ValueError, match="shard_map cannot be counted"):
        flops(a_device, A, B)
