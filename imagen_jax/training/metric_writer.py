"""What a training run records: metrics for TensorBoard and as JSON lines, a text log, plots of both."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from imagen_jax.images.plots import plot_loss, plot_run_diagnostics
from imagen_jax.io.json_lines import append_json_line, read_json_lines, write_json_lines
from imagen_jax.io.uploads import PART_BYTES, GrowingFolder, append_text
from imagen_jax.parallel import multihost

METRICS_FILE = "metrics.jsonl"
LOG_FILE = "log.txt"
LOSS_FILE = "loss.png"
DIAGNOSTICS_FILE = "diagnostics.png"

logger = logging.getLogger(__name__)


class MetricWriter:
    """Writes the metrics of a run to its folder; a resumed run continues them and drops what came after `step`.

    Args:
        workdir: the stage's folder.
        step: the step that training resumes from.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        self._workdir = workdir
        self._metrics = workdir / METRICS_FILE
        write_json_lines(self._metrics, [line for line in read_metrics(workdir) if line["step"] <= step])
        self._events = GrowingFolder(workdir / "tensorboard", lambda: self._summaries.flush())
        self._parts = 1
        self._summaries = SummaryWriter(str(self._events.local), purge_step=step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes the metrics of a step."""
        append_json_line(self._metrics, {"step": step, **values})
        if self._events.local_bytes() > self._parts * PART_BYTES:  # what is uploaded again and again stays small
            self._parts += 1
            self._summaries.close()
            self._summaries = SummaryWriter(str(self._events.local), filename_suffix=f".{self._parts}")
        for name, value in values.items():
            self._summaries.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes an image uint8 [H, W, 3] for TensorBoard."""
        self._summaries.add_image(name, image, step, dataformats="HWC")

    def log(self, text: str) -> None:
        """Appends a line with the time to the run's log."""
        _write_log(self._workdir, text)

    def close(self) -> None:
        """Flushes what is pending and plots all metrics so far."""
        self._summaries.close()
        self._events.close()
        metrics, title = read_metrics(self._workdir), self._workdir.name
        if any("loss" in line for line in metrics):
            plot_loss(metrics, title, self._workdir / LOSS_FILE)
        if any("saturation" in line for line in metrics):
            plot_run_diagnostics(metrics, title, self._workdir / DIAGNOSTICS_FILE)


class NullWriter:
    """Stands for a `MetricWriter` in processes that write nothing."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Does nothing."""

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Does nothing."""

    def log(self, text: str) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def log_message(workdir: Path, text: str) -> None:
    """Logs a message that must not be missed: as a warning and, in the main process, in the run's log file."""
    logger.warning(text)
    if multihost.is_main_process():
        _write_log(workdir, text)


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the metrics of a run so far, by step; damaged lines are skipped."""
    return [line for line in read_json_lines(workdir / METRICS_FILE) if isinstance(line.get("step"), int)]


def _write_log(workdir: Path, text: str) -> None:
    append_text(workdir / LOG_FILE, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
