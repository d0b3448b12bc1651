"""A training run's progress: a bar with images/s and time left, and the metrics of each step."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from imagen_jax.data.corrupt import CorruptRecords
from imagen_jax.errors import ConfigError
from imagen_jax.io.screen import Screen
from imagen_jax.parallel import devices, multihost
from imagen_jax.training.metric_writer import MetricWriter, NullWriter

logger = logging.getLogger(__name__)


class NoiseBinMeter:
    """Mean losses by noise level since the last record; the batch of one step has few examples in each bin."""

    def __init__(self) -> None:
        self._losses, self._counts = np.zeros(1), np.zeros(1)

    def add(self, losses: np.ndarray, counts: np.ndarray) -> None:
        """Adds the sums of a step's losses and their numbers, [bins] each."""
        self._losses, self._counts = self._losses + losses, self._counts + counts

    def means(self) -> dict[str, float]:
        """Returns the mean losses, as metrics such as `loss_at_noise/0.2-0.4`; empty bins are left out."""
        edges = np.linspace(0, 1, len(self._counts) + 1)
        return {
            f"loss_at_noise/{low:.2g}-{high:.2g}": float(loss / count)
            for low, high, loss, count in zip(edges[:-1], edges[1:], self._losses, self._counts, strict=True)
            if count
        }

    def summary(self) -> list[str]:
        """Returns the mean loss of each bin as text, "-" for empty bins."""
        pairs = zip(self._losses, self._counts, strict=True)
        return [f"{loss / count:.3g}" if count else "-" for loss, count in pairs]


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What a progress bar shows of a run.

    Attributes:
        name: title of the bar.
        first_step: the step that training resumes from.
        last_step: the step that it ends with.
        batch_size: global, for images/s.
        log_every: steps between records.
    """

    name: str
    first_step: int
    last_step: int
    batch_size: int
    log_every: int


class ProgressBar:
    """Reads the metrics of each step one step late, so that the host never waits for the device.

    Args:
        run: what to show.
        writer: records metrics and log lines.
        corrupt: the corrupt records found so far; each is named in the log once.
        on_metrics: functions that are called with each step and its metrics when they are read.
        times: returns where time was spent so far, to be recorded too.
    """

    def __init__(
        self,
        run: RunInfo,
        writer: MetricWriter | NullWriter,
        corrupt: CorruptRecords,
        on_metrics: Sequence[Callable[[int, dict[str, float]], None]],
        times: Callable[[], dict[str, float]],
    ) -> None:
        self._run, self._writer, self._corrupt = run, writer, corrupt
        self._on_metrics, self._times = on_metrics, times
        self._data_wait, self._since = 0.0, time.perf_counter()
        self._bar: tqdm | None = None
        self._bins = NoiseBinMeter()
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        if run.first_step < run.last_step and multihost.is_main_process():
            logger.info("%s: compiling the training step for %s", run.name, devices.describe_devices())

    def next_batch(self, batches: Iterator[Any]) -> Any:
        """Returns the next batch, and measures the wait for it, recorded as `data_wait`."""
        before = time.perf_counter()
        try:
            batch = next(batches)
        except ConfigError:  # too many corrupt records: the log names them
            self._log_corrupt()
            raise
        self._data_wait += time.perf_counter() - before
        return batch

    def step(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step that was dispatched just now; they are read at the next call."""
        self._read()
        self._pending = step, metrics

    def _read(self) -> None:
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        # every step is read, though few are recorded: the device's queue stays one step long
        values = {name: float(value) for name, value in metrics.items() if not value.ndim}
        for call in self._on_metrics:
            call(step, values)
        if "band_losses" in metrics:
            self._bins.add(*(np.asarray(metrics[name]) for name in ("band_losses", "band_counts")))
        if self._bar is None:
            # The bar starts after the first step: compilation would spoil images/s and the time left.
            self._bar = self._start_bar()
        else:
            self._bar.update(self._run.batch_size)
        if step % self._run.log_every == 0 or step == 1:
            rate = self._bar.format_dict["rate"] or 0.0
            rates = {"lr": f"{values['learning_rate']:.2e}"} if "learning_rate" in values else {}
            self._bar.set_postfix(step=step, loss=f"{values['loss']:.4f}", **rates, refresh=False)
            values |= self._data_metrics()
            means = self._bins.means()
            self._writer.scalars(step, {**values, **means, "images_per_second": rate, **self._times()})
            parts = [f"{name} {value:.4g}" for name, value in values.items() if _is_in_log(name, value)]
            if means:
                parts.append("loss from low to high noise " + " ".join(self._bins.summary()))
            self._writer.log(f"step {step}: " + ", ".join(parts))
            self._bins = NoiseBinMeter()

    def _data_metrics(self) -> dict[str, float]:
        """Returns the share of time spent waiting for data since the last record, and the number of corrupt records."""
        now = time.perf_counter()
        metrics = {"data_wait": self._data_wait / (now - self._since)}
        self._data_wait, self._since = 0.0, now
        if self._corrupt.count:
            metrics["corrupt_records"] = float(self._corrupt.count)
        self._log_corrupt()
        return metrics

    def _log_corrupt(self) -> None:
        for line in self._corrupt.pop_new():
            text = f"corrupt, replaced by another record: {line}"
            if multihost.is_main_process():
                self._writer.log(text)
            else:  # each process reads records of its own, and one alone writes the log
                logger.warning(text)

    def _start_bar(self) -> tqdm:
        return tqdm(
            total=self._run.last_step * self._run.batch_size,
            initial=(self._run.first_step + 1) * self._run.batch_size,
            desc=self._run.name,
            unit=" images",
            unit_scale=True,
            smoothing=0.05,
            mininterval=1.0,
            disable=not multihost.is_main_process(),
            file=Screen(),
        )

    def close(self) -> None:
        """Reads the metrics of the last step and closes the bar."""
        self._read()
        self._log_corrupt()
        if self._bar is not None:
            self._bar.close()


def _is_in_log(name: str, value: float) -> bool:
    """Returns whether log lines have a metric: not those of parts of a network, which are in groups."""
    return "/" not in name and bool(value or "skipped" not in name)
