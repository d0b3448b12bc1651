"""FLOPs of jaxprs against counts by hand, with and without transformations."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from imagen_jax.planning.flops import count_flops
from tests.helpers.configs import one_device

A, B = jnp.zeros((3, 5)), jnp.zeros((5, 7))
PRODUCT_FLOPS = 2 * 3 * 5 * 7


def product(a=A, b=B):
    return a @ b


def flops(function, *arguments):
    return count_flops(jax.make_jaxpr(function)(*arguments))


def test_matmul():
    assert flops(product, A, B) == PRODUCT_FLOPS


def test_batched_einsum():
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
def test_convolution(settings, expected):
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
def with_custom_gradient(a, b):
    return product(a, b)


with_custom_gradient.defvjp(lambda a, b: (product(a, b), None), lambda _, g: (g, g))


@pytest.mark.parametrize(
    "function, count",
    [
        (jax.jit(product), 1),
        (jax.checkpoint(product), 1),
        (with_custom_gradient, 1),
        (jax.vmap(product, in_axes=(None, 1), out_axes=1), 1),
        (scanned, 11),
        (branched, 2),
        (jax.jit(lambda a, b: scanned(a, b).sum() + branched(a, b)), 13),
        (lambda a, b: jnp.tanh(a).sum() + jnp.sort(b), 0),
    ],
    ids=["jit", "remat", "custom-vjp", "vmap", "scan", "cond", "nested", "no-product"],
)
def test_nested_jaxprs(function, count):
    assert flops(function, A, B) == count * PRODUCT_FLOPS


def test_gradient():
    def loss(a, b):
        return jnp.sum(jnp.sin(product(a, b)))

    assert flops(jax.grad(loss, argnums=(0, 1)), A, B) == 3 * PRODUCT_FLOPS


def test_unknown_trip_count_raises():
    def loop(until):
        return lambda a, b: jax.lax.fori_loop(0, until(a), lambda _, x: x @ x.T @ x, product(a, b))

    x_flops = 2 * (2 * 3 * 7 * 3)
    assert flops(loop(lambda a: 4), A, B) == PRODUCT_FLOPS + 4 * x_flops
    with pytest.raises(ValueError, match="while loop"):
        flops(loop(lambda a: a.astype(int).sum()), A, B)


def test_opaque_call_raises():
    replicated = PartitionSpec()
    per_device = jax.shard_map(product, mesh=one_device(), in_specs=(replicated, replicated), out_specs=replicated)
    with pytest.raises(ValueError, match="shard_map"):
        flops(per_device, A, B)
