"""The training state is sharded from the start, and its EMA follows its recurrence."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.parallel import sharding
from imagen_jax.training.state import abstract_state, update_ema
from tests.helpers.configs import eight_devices, one_device, split_devices


def init(key):
    """Returns a kernel large enough to be sharded and a bias that is not."""
    return {"kernel": jax.random.normal(key, (128, 256)), "bias": jnp.zeros((256,))}


@pytest.fixture(scope="module")
def states():
    """Initial states by the name of their mesh."""
    meshes = {"one": one_device(), "eight": eight_devices(), "split": split_devices()}
    return {name: abstract_state(init, optax.adam(1e-3), 3, mesh)[1]() for name, mesh in meshes.items()}


def test_large_arrays_are_sharded(states):
    state = states["split"]
    moments = state.opt_state[0]
    for tree in (state.params, state.ema_params, moments.mu, moments.nu):
        assert tree["kernel"].addressable_shards[0].data.shape == (128, 64)
        assert tree["bias"].addressable_shards[0].data.shape == (256,)
    for name in ("one", "eight"):
        assert states[name].params["kernel"].addressable_shards[0].data.shape == (128, 256)


def test_init_is_the_same_on_every_mesh(states):
    for name in ("eight", "split"):
        jax.tree.map(np.testing.assert_array_equal, states["one"], states[name])


def test_state_matches_abstract_state():
    mesh = split_devices()
    abstract, init_state = abstract_state(init, optax.adam(1e-3), 0, mesh)
    for expected, leaf in zip(jax.tree.leaves(abstract), jax.tree.leaves(init_state()), strict=True):
        assert (expected.shape, expected.dtype) == (leaf.shape, leaf.dtype)
        assert leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim)


@pytest.mark.parametrize("seed", [4, 2**32 + 3, 2**64 - 1])
def test_init_depends_on_seed(states, seed):
    other = abstract_state(init, optax.adam(1e-3), seed, one_device())[1]()
    assert not np.array_equal(other.params["kernel"], states["one"].params["kernel"])


def test_ema_starts_as_copy(states):
    state = states["one"]
    for raw, ema in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema_params), strict=True):
        np.testing.assert_array_equal(raw, ema)
        # the step donates its buffers, and cannot donate one twice
        assert raw.unsafe_buffer_pointer() != ema.unsafe_buffer_pointer()


@pytest.mark.parametrize("decay", [0.0, 0.2, 0.999])
def test_ema_recurrence(decay):
    rng = np.random.default_rng(0)
    ema = expected = rng.standard_normal(5)
    for step in range(6):
        params = rng.standard_normal(5)
        d = min(decay, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * params
        ema = update_ema({"a": jnp.asarray(ema)}, {"a": jnp.asarray(params)}, jnp.int32(step), decay)["a"]
        np.testing.assert_allclose(ema, expected, rtol=1e-5, atol=1e-6)


def test_ema_of_constant():
    ema = update_ema({"a": jnp.full(3, 0.1)}, {"a": jnp.full(3, 0.1)}, jnp.int32(7), 0.99)
    np.testing.assert_array_equal(ema["a"], np.full(3, 0.1, np.float32))


def test_scalars_are_replicated(monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SHARD_SIZE", 1)
    step = abstract_state(init, optax.adam(1e-3), 0, split_devices())[0].step
    assert step.sharding.is_fully_replicated
