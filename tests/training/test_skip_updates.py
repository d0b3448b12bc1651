"""Updates that would spoil a run are skipped; too many in a row end it, and name their examples."""

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
SPOILT = [float("nan"), float("inf"), -float("inf"), 1e30]


@functools.cache
def guarded(spike_factor):
    optimizer = skip_bad_updates(optax.adam(1e-2), spike_factor)
    return optimizer.init(PARAMS), jax.jit(lambda gradients, state, loss: optimizer.update(gradients, state, loss=loss))


def same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.parametrize("value", SPOILT)
def test_one_number_that_is_none_leaves_everything_as_it_was(value):
    state, update = guarded(0.0)
    _, state = update(GRADIENTS, state, 1.0)
    updates, after = update({**GRADIENTS, "a": jnp.array([1.0, value, 1.0])}, state, 1.0)
    same(updates, jax.tree.map(jnp.zeros_like, PARAMS))
    same(after.inner, state.inner)
    assert float(after.usual_loss) == float(state.usual_loss)
    assert (int(after.skipped), int(after.skipped_in_a_row)) == (1, 1)
    # and the next update is the one that would have been made
    updates, after = update(GRADIENTS, after, 1.0)
    same((updates, after.inner), (update(GRADIENTS, state, 1.0)[0], update(GRADIENTS, state, 1.0)[1].inner))
    assert (int(after.skipped), int(after.skipped_in_a_row)) == (1, 0)


def test_a_good_update_is_that_of_the_optimizer_itself():
    state, update = guarded(4.0)
    alone = optax.adam(1e-2)
    updates, after = update(GRADIENTS, state, 1.0)
    expected, inner = jax.jit(alone.update)(GRADIENTS, alone.init(PARAMS))
    same((updates, after.inner), (expected, inner))


@pytest.mark.parametrize("spike_factor, skipped", [(0.0, 0), (4.0, 1)])
def test_a_spike_of_the_loss_is_skipped_if_there_is_a_limit(spike_factor, skipped):
    state, update = guarded(spike_factor)
    for loss in (0.3, 0.1, 0.2, 0.5):
        _, state = update(GRADIENTS, state, loss)
    assert int(state.skipped) == 0
    _, after = update(GRADIENTS, state, 1000 * 0.2)
    assert int(after.skipped) == skipped
    assert (float(after.usual_loss) == float(state.usual_loss)) == bool(skipped)
    assert np.isfinite(jax.tree.leaves(after)[0]).all()


def test_a_loss_that_is_no_number_is_skipped_where_gradients_are():
    state, update = guarded(0.0)
    _, after = update(GRADIENTS, state, float("nan"))
    assert int(after.skipped) == 1
    assert float(after.usual_loss) == 0


def test_skipped_updates_are_told_and_too_many_in_a_row_end_the_run():
    said = []
    bad_steps = SkippedUpdateMonitor(3, lambda step: [f"{step}.png", f"{10 * step}.png"], said.append)
    for step, in_a_row in enumerate([0, 1, 2, 0, 1, 2], 1):
        bad_steps.update(step, {"skipped_in_a_row": in_a_row, "loss": float("nan"), "gradient_norm": float("inf")})
    assert [text.split(":")[0] for text in said] == ["step 2", "step 3", "step 5", "step 6"]
    assert "its examples are 6.png, 60.png" in said[-1]
    with pytest.raises(
        TrainingError, match=r"3 updates in a row .* at step 7: loss nan, .* examples are 7.png, 70.png"
    ) as ended:
        bad_steps.update(7, {"skipped_in_a_row": 3, "loss": float("nan"), "gradient_norm": float("inf")})
    assert "\n" not in str(ended.value)
