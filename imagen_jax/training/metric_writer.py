"""What a training run writes down: metrics for TensorBoard and as lines of JSON, a log for people, curves of both."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from imagen_jax.images.plots import plot_loss, plot_run_diagnostics
from imagen_jax.io.atomic import atomic_write
from imagen_jax.parallel import multihost

METRICS_FILE = "metrics.jsonl"
LOG_FILE = "log.txt"
LOSS_FILE = "loss.png"
DIAGNOSTICS_FILE = "diagnostics.png"


class MetricWriter:
    """The records of a run in its folder; a resumed run continues them from ``step``, forgetting what came after.

    Args:
        workdir: the stage's folder.
        step: the step that training goes on from.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        self._workdir = workdir
        self._metrics = workdir / METRICS_FILE
        kept = [line for line in read_metrics(workdir) if line["step"] <= step]
        atomic_write(self._metrics, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._summaries = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Metrics of a step."""
        with self._metrics.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._summaries.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """A picture uint8 [H, W, 3] for TensorBoard."""
        self._summaries.add_image(name, image, step, dataformats="HWC")

    def log(self, text: str) -> None:
        """A line for people, with the time."""
        _write_log(self._workdir, text)

    def close(self) -> None:
        """Completes what is being written and draws the curves of all that there is."""
        self._summaries.close()
        metrics, title = read_metrics(self._workdir), self._workdir.name
        if any("loss" in line for line in metrics):
            plot_loss(metrics, title, self._workdir / LOSS_FILE)
        if any("saturation" in line for line in metrics):
            plot_run_diagnostics(metrics, title, self._workdir / DIAGNOSTICS_FILE)


class NullWriter:
    """What a process that does not write has in the place of ``Records``."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Nothing."""

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Nothing."""

    def log(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _write_log(workdir: Path, text: str) -> None:
    """A line for people in a folder's log, with the time."""
    with (workdir / LOG_FILE).open("a") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def log_message(workdir: Path, text: str) -> None:
    """A sentence that nobody must miss: on the screen, and in the log, which one of several processes writes."""
    tqdm.write(text, file=sys.stderr)
    if multihost.is_main_process():
        _write_log(workdir, text)


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics of a run so far; a last line that a kill cut short is left out."""
    try:
        lines = (workdir / METRICS_FILE).read_text().splitlines()
    except FileNotFoundError:
        return []
    complete = []
    for line in lines:
        try:
            complete.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return complete
