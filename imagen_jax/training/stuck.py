"""Ends a run whose updates are applied and change nothing, whatever the cause."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import TrainingError
from imagen_jax.parallel.sharding import replicated
from imagen_jax.training.state import TrainState

# Applied updates without an effect after which a run ends. The first update of a warm-up is one: its rate is 0.
_LIMIT = 10


class StuckMonitor:
    """Watches gradients and parameters of applied updates.

    A norm in float32 may stay equal while parameters change. So once it does, the bits of the parameters are summed up
    twice, some updates apart; runs whose norm changes never pay for that.

    Args:
        config: the run's config, for messages.
        mesh: the devices.
    """

    def __init__(self, config: StageConfig, mesh: Mesh) -> None:
        self._config = config
        self._checksums = jax.jit(_checksums, out_shardings=replicated(mesh))
        self._norm = self._rate = 0.0
        self._without_gradient = self._same_norm = 0
        self._reference: tuple[int, jax.Array] | None = None

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Takes the metrics of a step.

        Raises:
            TrainingError: the gradients of the last applied updates are all 0.
        """
        if metrics["skipped_in_a_row"]:
            return
        self._rate = metrics["learning_rate"]
        self._without_gradient = 0 if metrics["gradient_norm"] else self._without_gradient + 1
        self._same_norm = self._same_norm + 1 if metrics["parameter_norm"] == self._norm else 0
        self._norm = metrics["parameter_norm"]
        if self._without_gradient >= _LIMIT:
            raise TrainingError(
                f"all gradients of the last {self._without_gradient} updates, until step {step}, are 0: the loss does "
                f"not depend on the parameters that are trained, so nothing is learned; {self._trained()}"
            )

    def check(self, step: int, params: Any) -> None:
        """Takes the parameters after a step; its metrics may follow later.

        Raises:
            TrainingError: applied updates have not changed a bit of them.
        """
        if self._same_norm < _LIMIT:
            self._reference = None
        elif self._reference is None:
            self._reference = self._same_norm, self._checksums(params)
        elif self._same_norm >= self._reference[0] + _LIMIT:
            if np.array_equal(self._reference[1], self._checksums(params)):
                optimizer = self._config.optimizer
                raise TrainingError(
                    f"the last {self._same_norm} updates, until step {step}, have not changed a bit of the parameters, "
                    f"at a learning rate of {self._rate:.3g}: nothing is learned; raise optimizer.learning_rate "
                    f"({optimizer.learning_rate:g}) or optimizer.clip_norm ({optimizer.clip_norm:g}), lower "
                    f"optimizer.eps ({optimizer.eps:g}), or train until an earlier step"
                )
            self._same_norm, self._reference = 0, None

    def _trained(self) -> str:
        patterns = self._config.training.trainable
        if patterns:
            return (
                f"training.trainable {patterns!r} leaves all layers after them at their zero initial values: train "
                "those too, or start from trained weights (training.init_from)"
            )
        return "check the loss and the data"


def check_learned(state: TrainState) -> None:
    """Raises TrainingError if all updates of a run that has ended were skipped."""
    step, skipped = int(state.step), int(state.opt_state.skipped)
    if skipped == step > 0:
        raise TrainingError(
            f"all {step} updates of the run were skipped, because gradients or losses were not finite: nothing is "
            "learned; log.txt names the examples; lower optimizer.learning_rate, or inspect them, and train again in "
            "another --workdir"
        )


def _checksums(params: Any) -> jax.Array:
    """Returns the sum of the bits of each array, uint32 [number of arrays]."""

    def checksum(leaf: jax.Array) -> jax.Array:
        unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
        return jnp.sum(jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32), dtype=jnp.uint32)

    return jnp.stack([checksum(leaf) for leaf in jax.tree.leaves(params)])
