"""Updates that would spoil a run are skipped, within the step: gradients that are no numbers, losses far off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from imagen_jax.errors import TrainingError

# Of the running mean of losses that a spike is held against: it sees some hundred steps back.
_LOSS_DECAY = 0.99


class GuardState(NamedTuple):
    """What the guard remembers, beside the state of the optimizer that it guards: scalars."""

    inner: Any
    usual_loss: jax.Array  # running mean of the losses of updates that were made; 0 before the first
    skipped: jax.Array  # updates of the whole run
    skipped_in_a_row: jax.Array  # 0 after an update that was made


def skip_bad_updates(
    optimizer: optax.GradientTransformation, spike_factor: float
) -> optax.GradientTransformationExtraArgs:
    """The optimizer, but its update is zero, and its state stays, where gradients or loss are not finite.

    Args:
        optimizer: what is guarded.
        spike_factor: the update is skipped too where ``loss``, an extra argument of its ``update``, is over so many
            times the usual; 0 for no such limit.
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
        # one branch for all: a choice for every array of the optimizer made a step of a small network a fifth longer
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
    """An update of nothing, as an optimizer's: zeros, and its state as it was."""
    del params
    return jax.tree.map(jnp.zeros_like, gradients), state


class SkippedUpdateMonitor:
    """Tells of updates that were skipped, and ends a run in which one after another is.

    Args:
        limit: how many in a row are too many.
        examples_of: the names of a step's examples.
        say: takes a sentence.
    """

    def __init__(self, limit: int, examples_of: Callable[[int], list[str]], say: Callable[[str], None]) -> None:
        self._limit, self._examples_of, self._say = limit, examples_of, say

    def see(self, step: int, metrics: dict[str, float]) -> None:
        """The metrics of a step. Raises RunError if its update is one too many to be skipped."""
        in_a_row = int(metrics["skipped_in_a_row"])
        if not in_a_row:
            return
        what = (
            f"loss {metrics['loss']:.4g}, gradient norm {metrics['gradient_norm']:.4g}; "
            f"its examples are {', '.join(self._examples_of(step))}"
        )
        if in_a_row >= self._limit:
            raise TrainingError(
                f"{in_a_row} updates in a row were skipped (training.max_skipped_updates), the last at step {step}: {what}; "
                "parameters are those before, and so is the last checkpoint: lower optimizer.learning_rate, or look "
                "at those examples"
            )
        self._say(f"step {step}: its update was skipped: {what}")
