"""Skips updates with non-finite or large gradients or loss spikes, inside the training step, and reports them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from imagen_jax.errors import TrainingError

# decay of the running mean of losses that spikes are compared with: about the last hundred steps
_LOSS_DECAY = 0.99


class SkipUpdatesState(NamedTuple):
    """The state of `skip_bad_updates`; the field names are part of the checkpoint format.

    Attributes:
        inner: the state of the wrapped optimizer.
        usual_loss: running mean of the losses of applied updates; 0 before the first.
        skipped: number of skipped updates in the run.
        skipped_in_a_row: number of skipped updates since the last applied one.
    """

    inner: Any
    usual_loss: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array


def skip_bad_updates(
    optimizer: optax.GradientTransformation, spike_factor: float, skip_norm: float = 0.0
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that its update is zero and its state stays if gradients or loss are not finite.

    Args:
        optimizer: the optimizer to wrap.
        spike_factor: updates are also skipped if `loss`, an extra argument of `update`, is over this many times the
            running mean of losses; 0 for no limit.
        skip_norm: updates are also skipped if the global norm of their gradients is above this; 0 for no limit.

    Returns:
        The wrapped optimizer, with a `SkipUpdatesState`.
    """

    def init(params: Any) -> SkipUpdatesState:
        zero = jnp.zeros((), jnp.int32)
        return SkipUpdatesState(optimizer.init(params), jnp.zeros((), jnp.float32), zero, zero)

    def update(
        gradients: Any, state: SkipUpdatesState, params: Any = None, *, loss: jax.Array | None = None
    ) -> tuple[Any, SkipUpdatesState]:
        # finite gradients whose norm overflows are bad too: clipping would divide by it
        norm = optax.tree.norm(gradients)
        good = jnp.isfinite(norm)
        if skip_norm:
            good &= norm <= skip_norm
        usual_loss = state.usual_loss
        if loss is not None:
            good &= jnp.isfinite(loss)
            if spike_factor:
                good &= (usual_loss == 0) | (loss <= spike_factor * usual_loss)
            mean = jnp.where(usual_loss == 0, loss, _LOSS_DECAY * usual_loss + (1 - _LOSS_DECAY) * loss)
            usual_loss = jnp.where(good, mean, usual_loss)
        # one branch: a jnp.where for each array of the optimizer slowed the step of a small network by a fifth
        updates, inner = jax.lax.cond(good, optimizer.update, _no_update, gradients, state.inner, params)
        skipped = 1 - good.astype(jnp.int32)
        return updates, SkipUpdatesState(
            inner,
            usual_loss,
            state.skipped + skipped,
            jnp.where(good, 0, state.skipped_in_a_row + 1),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _no_update(gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
    """Returns updates of zeros and the unchanged state."""
    del params
    return jax.tree.map(jnp.zeros_like, gradients), state


class SkippedUpdateMonitor:
    """Reports skipped updates, and ends a run in which too many are skipped in a row.

    Args:
        limit: number of skipped updates in a row that ends the run, `training.max_skipped_updates`.
        example_names: returns the names of the examples in a step's batch.
        log: takes a message about each skipped update.
    """

    def __init__(self, limit: int, example_names: Callable[[int], list[str]], log: Callable[[str], None]) -> None:
        self._limit, self._example_names, self._log = limit, example_names, log

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Takes the metrics of a step.

        Raises:
            TrainingError: the last `limit` updates were skipped.
        """
        in_a_row = int(metrics["skipped_in_a_row"])
        if not in_a_row:
            return
        details = (
            f"loss {metrics['loss']:.4g}, gradient norm {metrics['gradient_norm']:.4g}; "
            f"its examples are {', '.join(self._example_names(step))}"
        )
        if in_a_row >= self._limit:
            raise TrainingError(
                f"{in_a_row} updates in a row were skipped (training.max_skipped_updates={self._limit}), the last at "
                f"step {step}: {details}; parameters and the last checkpoint are from before these updates: lower "
                "optimizer.learning_rate, or inspect those examples"
            )
        self._log(f"step {step}: the update was skipped: {details}")
