"""Bad updates are skipped; too many in a row end the run and name their examples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.errors import TrainingError
from imagen_jax.training.skip_updates import SkippedUpdateMonitor, skip_bad_updates

PARAMS = {"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}
GRADIENTS = jax.tree.map(jnp.ones_like, PARAMS)
BAD_VALUES = [float("nan"), float("inf"), -float("inf"), 1e30]


@functools.cache
def make_optimizer(spike_factor):
    optimizer = skip_bad_updates(optax.adam(1e-2), spike_factor)
    return optimizer.init(PARAMS), jax.jit(lambda gradients, state, loss: optimizer.update(gradients, state, loss=loss))


def assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.parametrize("value", BAD_VALUES)
def test_bad_gradient_changes_nothing(value):
    state, update = make_optimizer(0.0)
    _, state = update(GRADIENTS, state, 1.0)
    updates, after = update({**GRADIENTS, "a": jnp.array([1.0, value, 1.0])}, state, 1.0)
    assert_equal(updates, jax.tree.map(jnp.zeros_like, PARAMS))
    assert_equal(after.inner, state.inner)
    assert float(after.usual_loss) == float(state.usual_loss)
    assert (int(after.skipped), int(after.skipped_in_a_row)) == (1, 1)
    # the next update is the same as without the skipped one
    updates, after = update(GRADIENTS, after, 1.0)
    assert_equal((updates, after.inner), (update(GRADIENTS, state, 1.0)[0], update(GRADIENTS, state, 1.0)[1].inner))
    assert (int(after.skipped), int(after.skipped_in_a_row)) == (1, 0)


@pytest.mark.parametrize("factor, skipped", [(0.99, 1), (1.01, 0)])
def test_large_gradients(factor, skipped):
    """Those above `optimizer.skip_norm` are skipped and counted, and the optimizer's state stays."""
    inner = optax.adam(1e-2)
    optimizer = skip_bad_updates(inner, 0.0, factor * float(optax.tree.norm(GRADIENTS)))
    state = optimizer.init(PARAMS)
    updates, after = jax.jit(optimizer.update)(GRADIENTS, state, loss=1.0)
    assert int(after.skipped) == skipped
    expected = jax.tree.map(jnp.zeros_like, PARAMS) if skipped else inner.update(GRADIENTS, state.inner)[0]
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), updates, expected)


def test_good_update_equals_inner_optimizer():
    state, update = make_optimizer(4.0)
    inner_optimizer = optax.adam(1e-2)
    updates, after = update(GRADIENTS, state, 1.0)
    expected, inner = jax.jit(inner_optimizer.update)(GRADIENTS, inner_optimizer.init(PARAMS))
    assert_equal((updates, after.inner), (expected, inner))


@pytest.mark.parametrize("spike_factor, skipped", [(0.0, 0), (4.0, 1)])
def test_loss_spike(spike_factor, skipped):
    state, update = make_optimizer(spike_factor)
    for loss in (0.3, 0.1, 0.2, 0.5):
        _, state = update(GRADIENTS, state, loss)
    assert int(state.skipped) == 0
    _, after = update(GRADIENTS, state, 1000 * 0.2)
    assert int(after.skipped) == skipped
    assert (float(after.usual_loss) == float(state.usual_loss)) == bool(skipped)
    assert np.isfinite(jax.tree.leaves(after)[0]).all()


def test_nan_loss_is_skipped():
    state, update = make_optimizer(0.0)
    _, after = update(GRADIENTS, state, float("nan"))
    assert int(after.skipped) == 1
    assert float(after.usual_loss) == 0


def test_monitor_logs_and_ends_run():
    messages = []
    monitor = SkippedUpdateMonitor(3, lambda step: [f"{step}.png", f"{10 * step}.png"], messages.append)
    for step, in_a_row in enumerate([0, 1, 2, 0, 1, 2], 1):
        monitor.update(step, {"skipped_in_a_row": in_a_row, "loss": float("nan"), "gradient_norm": float("inf")})
    assert [text.split(":")[0] for text in messages] == ["step 2", "step 3", "step 5", "step 6"]
    assert "6.png, 60.png" in messages[-1]
    with pytest.raises(TrainingError, match=r"max_skipped_updates=3.* step 7: loss nan, .*7.png, 70.png") as error:
        monitor.update(7, {"skipped_in_a_row": 3, "loss": float("nan"), "gradient_norm": float("inf")})
    assert "\n" not in str(error.value)
