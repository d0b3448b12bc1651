"""Ends a run whose updates are applied and change nothing, whatever the cause."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import TrainingError
from imagen_jax.parallel.sharding import replicated
from imagen_jax.training.optimizers import learning_rate_schedule
from imagen_jax.training.state import TrainState

# applied updates without an effect after which a run is measured, and as many later ended
_LIMIT = 10
# Updates at less than this share of the peak learning rate are not judged: by design, they hardly change parameters.
_LOW_RATE = 1e-3
# A run in which no parameter would move farther is in vain: most weights are about 0.01.
_MIN_MOVEMENT = 1e-6
_POINTS = 1000


class _Reference(NamedTuple):
    """What parameters are compared with.

    Attributes:
        updates: the number of updates that had not changed the norm.
        rates: the sum of the learning rates of all judged updates so far.
        samples: of the parameters.
    """

    updates: int
    rates: float
    samples: list[jax.Array]


class StuckMonitor:
    """Watches gradients and parameters of applied updates.

    A norm in float32 may stay equal while parameters change. So once it does, some parameters are compared with what
    they were some updates ago; runs whose norm changes never pay for that.

    Args:
        config: the run's config.
        mesh: the devices.
    """

    def __init__(self, config: StageConfig, mesh: Mesh) -> None:
        self._config = config
        self._sample = jax.jit(_samples, out_shardings=replicated(mesh))
        self._norm = self._rates = 0.0
        self._without_gradient = self._same_norm = 0
        self._reference: _Reference | None = None

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Takes the metrics of a step.

        Raises:
            TrainingError: the gradients of the last applied updates are all 0.
        """
        rate = metrics["learning_rate"]
        if metrics["skipped_in_a_row"] or rate < _LOW_RATE * self._config.optimizer.learning_rate:
            return
        self._rates += rate
        self._without_gradient = 0 if metrics["gradient_norm"] else self._without_gradient + 1
        self._same_norm = self._same_norm + 1 if metrics["parameter_norm"] == self._norm else 0
        self._norm = metrics["parameter_norm"]
        if self._without_gradient >= _LIMIT:
            raise TrainingError(
                f"all gradients of the last {self._without_gradient} updates, until step {step}, are 0: the loss does "
                f"not depend on the parameters that are trained, so nothing is learned; {self._advice()}"
            )

    def check(self, step: int, params: Any) -> None:
        """Takes the parameters after a step; its metrics may follow later.

        Raises:
            TrainingError: at the pace of the last updates, no parameter would change in all of the run.
        """
        if self._same_norm < _LIMIT:
            self._reference = None
        elif self._reference is None:
            self._reference = _Reference(self._same_norm, self._rates, self._sample(params))
        elif self._same_norm >= self._reference.updates + _LIMIT:
            self._compare(step, self._reference, params)
            self._same_norm, self._reference = 0, None

    def _compare(self, step: int, reference: _Reference, params: Any) -> None:
        pairs = zip(reference.samples, self._sample(params), strict=True)
        moved = max(float(np.max(np.abs(np.subtract(now, before)))) for before, now in pairs)
        movement = moved / (self._rates - reference.rates) * _sum_of_rates(self._config)
        if movement < _MIN_MOVEMENT:
            optimizer = self._config.optimizer
            raise TrainingError(
                f"the last {self._same_norm} updates, until step {step}, have changed no parameter by more than "
                f"{moved:.2g}: in all of the run none would change by more than {movement:.2g}, so nothing is learned; "
                f"raise optimizer.learning_rate ({optimizer.learning_rate:g}) or optimizer.clip_norm "
                f"({optimizer.clip_norm:g}), or lower optimizer.eps ({optimizer.eps:g})"
            )

    def _advice(self) -> str:
        patterns = self._config.training.trainable
        if patterns:
            return (
                f"beside training.trainable {patterns!r} all is frozen, layers that begin with zeros too: train "
                "those as well, or start from trained weights (training.init_from)"
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


def _samples(params: Any) -> list[jax.Array]:
    """Returns the first entries of each array: all along its last axis."""
    return [leaf[(0,) * (leaf.ndim - 1)] if leaf.ndim else leaf for leaf in jax.tree.leaves(params)]


def _sum_of_rates(config: StageConfig) -> float:
    """Returns about the sum of the learning rates of all steps of a run."""
    steps = config.training.steps
    rate = learning_rate_schedule(config.optimizer, steps)
    return steps * float(np.mean(rate(np.linspace(0, steps - 1, min(steps, _POINTS)))))
