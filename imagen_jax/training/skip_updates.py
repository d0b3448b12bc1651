"""Skips updates that would damage a run, within the step: non-finite gradients, loss spikes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from imagen_jax.errors import TrainingError

# Decay of the running mean of losses that a spike is compared with: about a hundred steps.
_LOSS_DECAY = 0.99


class GuardState(NamedTuple):
    """The state of the wrapped optimizer, and scalars."""

    inner: Any
    usual_loss: jax.Array  # running mean of the losses of applied updates; 0 before the first
    skipped: jax.Array  # updates since the start of the run
    skipped_in_a_row: jax.Array  # 0 after an applied update


def skip_bad_updates(
    optimizer: optax.GradientTransformation, spike_factor: float
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer: where gradients or loss are not finite, the update is zero and the state stays.

    Args:
        optimizer: the optimizer to wrap.
        spike_factor: an update is skipped too where `loss`, an extra argument of `update`, is more than this many
            times its running mean; 0 for no limit.
    """

    def init(params: Any) -> GuardState:
        none = jnp.zeros((), jnp.int32)
        return GuardState(optimizer.init(params), jnp.zeros((), jnp.float32), none, none)

    def update(
        gradients: Any, state: GuardState, params: Any = None, *, loss: jax.Array | None = None
    ) -> tuple[Any, GuardState]:
        # a sum of squares that overflows is as useless: clipping would divide by it
        good = jnp.isfinite(optax.tree.norm(gradients))
        usual_loss = state.usual_loss
        if loss is not None:
            good &= jnp.isfinite(loss)
            if spike_factor:
                good &= (usual_loss == 0) | (loss <= spike_factor * usual_loss)
            mean = jnp.where(usual_loss == 0, loss, _LOSS_DECAY * usual_loss + (1 - _LOSS_DECAY) * loss)
            usual_loss = jnp.where(good, mean, usual_loss)
        # one branch for all: selecting every array of the optimizer made a step of a small network a fifth longer
        updates, inner = jax.lax.cond(good, optimizer.update, _no_update, gradients, state.inner, params)
        skipped = 1 - good.astype(jnp.int32)
        return updates, GuardState(
            inner,
            usual_loss,
            state.skipped + skipped,
            jnp.where(good, 0, state.skipped_in_a_row + 1),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _no_update(gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
    """Returns a zero update and the unchanged state."""
    del params
    return jax.tree.map(jnp.zeros_like, gradients), state


class SkippedUpdateMonitor:
    """Logs skipped updates, and ends a run that skips too many in a row.

    Args:
        limit: number of consecutive skipped updates that ends the run.
        record_names: returns the names of the records in a step's batch.
        log: takes a message.
    """

    def __init__(self, limit: int, record_names: Callable[[int], list[str]], log: Callable[[str], None]) -> None:
        self._limit, self._record_names, self._log = limit, record_names, log

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Takes the metrics of a step. Raises TrainingError if too many updates in a row were skipped."""
        in_a_row = int(metrics["skipped_in_a_row"])
        if not in_a_row:
            return
        details = (
            f"loss {metrics['loss']:.4g}, gradient norm {metrics['gradient_norm']:.4g}; "
            f"its records are {', '.join(self._record_names(step))}"
        )
        if in_a_row >= self._limit:
            raise TrainingError(
                f"{in_a_row} updates in a row were skipped (training.max_skipped_updates), the last at step {step}: "
                f"{details}; parameters and the last checkpoint are unchanged by them: lower optimizer.learning_rate, or "
                "look at those records"
            )
        self._log(f"step {step}: its update was skipped: {details}")
