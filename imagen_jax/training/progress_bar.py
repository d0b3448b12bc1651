"""A training run's progress for the person who watches: a bar with images/s and time left, and metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from imagen_jax.data.corrupt import CorruptRecords
from imagen_jax.errors import ConfigError
from imagen_jax.parallel import multihost
from imagen_jax.training.metric_writer import NullWriter, MetricWriter


class NoiseBinMeter:
    """Mean losses in bands of noise level, of all steps since the last record: few examples of a step are in each."""

    def __init__(self) -> None:
        self._losses, self._counts = np.zeros(1), np.zeros(1)

    def add(self, losses: np.ndarray, counts: np.ndarray) -> None:
        """The sums of the losses of a step, and how many there were, of each band."""
        self._losses, self._counts = self._losses + losses, self._counts + counts

    def means(self) -> dict[str, float]:
        """``loss_at_noise/0.2-0.4`` and so on → mean loss; a band in which there was no example is left out."""
        edges = np.linspace(0, 1, len(self._counts) + 1)
        return {
            f"loss_at_noise/{low:.2g}-{high:.2g}": float(loss / count)
            for low, high, loss, count in zip(edges[:-1], edges[1:], self._losses, self._counts, strict=True)
            if count
        }

    def words(self) -> list[str]:
        """The mean loss of each band as text, "-" where there was no example."""
        pairs = zip(self._losses, self._counts, strict=True)
        return [f"{loss / count:.3g}" if count else "-" for loss, count in pairs]


class ProgressBar:
    """Takes each step's metrics and reads those of the step before, so that the device is never waited for.

    Args:
        name: what the bar is called.
        first: the step that training goes on from.
        steps: the last step.
        batch_size: global, for images/s.
        log_every: steps between records.
        records: where they go.
        broken: what was found of the source's records; each that is broken is named in the log.
        see: is shown each step and its metrics as they are read.
        times: where the time went so far, to be recorded too.
    """

    def __init__(
        self,
        name: str,
        first: int,
        steps: int,
        batch_size: int,
        log_every: int,
        records: MetricWriter | NullWriter,
        broken: CorruptRecords,
        see: Callable[[int, dict[str, float]], None],
        times: Callable[[], dict[str, float]],
    ) -> None:
        self._see, self._times = see, times
        self._batch_size, self._log_every, self._records = batch_size, log_every, records
        self._name, self._first, self._steps = name, first, steps
        self._broken = broken
        self._waited, self._since = 0.0, time.perf_counter()
        self._bar: tqdm | None = None
        self._bands = NoiseBinMeter()
        self._waiting: tuple[int, dict[str, jax.Array]] | None = None
        if first < steps:
            print(f"{name}: compiling the training step", flush=True)

    def next_of(self, batches: Iterator[Any]) -> Any:
        """The next batch; the share of the time that is spent here is recorded as ``data_wait``."""
        before = time.perf_counter()
        try:
            batch = next(batches)
        except ConfigError:  # of too many broken records, says the log which
            self._name_the_broken()
            raise
        self._waited += time.perf_counter() - before
        return batch

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
        values = {name: float(value) for name, value in metrics.items() if not value.ndim}
        self._see(step, values)
        self._bands.add(*(np.asarray(metrics[name]) for name in ("band_losses", "band_counts")))
        if self._bar is None:
            # The clock starts after the first step: compilation would spoil images/s and the time left.
            self._bar = self._start_bar()
        else:
            self._bar.update(self._batch_size)
        if step % self._log_every == 0 or step == 1:
            rate = self._bar.format_dict["rate"] or 0.0
            self._bar.set_postfix(step=step, loss=f"{values['loss']:.4f}", refresh=False)
            values |= self._of_the_data()
            means = self._bands.means()
            self._records.scalars(step, {**values, **means, "images_per_second": rate, **self._times()})
            said = [f"{name} {value:.4g}" for name, value in values.items() if value or "skipped" not in name]
            said.append("loss from little to much noise " + " ".join(self._bands.words()))
            self._records.log(f"step {step}: " + ", ".join(said))
            self._bands = NoiseBinMeter()

    def _of_the_data(self) -> dict[str, float]:
        """The share of the time since the last record that was waited for data, and how many records are broken."""
        now = time.perf_counter()
        found = {"data_wait": self._waited / (now - self._since)}
        self._waited, self._since = 0.0, now
        if self._broken.count:
            found["broken_records"] = float(self._broken.count)
        self._name_the_broken()
        return found

    def _name_the_broken(self) -> None:
        for line in self._broken.pop_new():
            # each process reads records of its own, and one alone has a log
            (self._records.log if multihost.is_main_process() else print)(f"broken, another is in its place: {line}")

    def _start_bar(self) -> tqdm:
        return tqdm(
            total=self._steps * self._batch_size,
            initial=(self._first + 1) * self._batch_size,
            desc=self._name,
            unit=" images",
            unit_scale=True,
            smoothing=0.05,
            mininterval=1.0,
            disable=not multihost.is_main_process(),
        )

    def close(self) -> None:
        """Reads the last step."""
        self._read()
        self._name_the_broken()
        if self._bar is not None:
            self._bar.close()
