"""A training run's progress for the person who watches: a bar with images/s and time left, and metrics."""

from __future__ import annotations

import jax
from tqdm import tqdm

from imagen_jax.training.records import Records


class Progress:
    """Takes each step's metrics and reads those of the step before, so that the device is never waited for.

    Args:
        name: what the bar is called.
        first: the step that training goes on from.
        steps: the last step.
        batch_size: global, for images/s.
        log_every: steps between records.
        records: where they go.
    """

    def __init__(self, name: str, first: int, steps: int, batch_size: int, log_every: int, records: Records) -> None:
        self._batch_size, self._log_every, self._records = batch_size, log_every, records
        self._bar = tqdm(
            total=steps * batch_size,
            initial=first * batch_size,
            desc=name,
            unit=" images",
            unit_scale=True,
            smoothing=0.05,
            mininterval=1.0,
        )
        self._waiting: tuple[int, dict[str, jax.Array]] | None = None

    def step(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """A step has been dispatched; its metrics are read at the next."""
        self._read()
        self._waiting = step, metrics

    def _read(self) -> None:
        if self._waiting is None:
            return
        step, metrics = self._waiting
        self._waiting = None
        # reads every step, though few are recorded: the queue of a device stays one step long
        values = {name: float(value) for name, value in metrics.items()}
        self._bar.update(self._batch_size)
        if step % self._log_every == 0 or step == 1:
            rate = self._bar.format_dict["rate"] or 0.0
            self._bar.set_postfix(step=step, loss=f"{values['loss']:.4f}", refresh=False)
            self._records.scalars(step, {**values, "images_per_second": rate})
            self._records.log(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def close(self) -> None:
        """Reads the last step."""
        self._read()
        self._bar.close()
