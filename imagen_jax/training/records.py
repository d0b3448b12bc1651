"""What a training run writes down: metrics for TensorBoard and as lines of JSON, a log for people, the loss curve."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no screen on the machines that train
import matplotlib.pyplot as plt
import numpy as np
from tensorboardX import SummaryWriter

METRICS_FILE = "metrics.jsonl"
LOG_FILE = "log.txt"
CURVE_FILE = "loss.png"


class Records:
    """The records of a run in its folder; a resumed run continues them from ``step``, forgetting what came after.

    Args:
        workdir: the stage's folder.
        step: the step that training goes on from.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        self._workdir = workdir
        self._metrics = workdir / METRICS_FILE
        kept = [line for line in read_metrics(workdir) if line["step"] <= step]
        self._metrics.write_text("".join(json.dumps(line) + "\n" for line in kept))
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
        with (self._workdir / LOG_FILE).open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def close(self) -> None:
        """Completes what is being written and draws the loss curve."""
        self._summaries.close()
        draw_loss_curve(self._workdir)


class NoRecords:
    """What a process that does not write has in the place of ``Records``."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Nothing."""

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Nothing."""

    def log(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


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


def draw_loss_curve(workdir: Path) -> None:
    """The loss over the steps as a PNG: as measured, and smoothed."""
    metrics = read_metrics(workdir)
    if not metrics:
        return
    steps = np.array([line["step"] for line in metrics])
    losses = np.array([line["loss"] for line in metrics])
    window = max(1, len(losses) // 30)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    figure, axes = plt.subplots(figsize=(7, 4), dpi=110)
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, label="loss")
    axes.plot(steps[window - 1 :], smooth, color="tab:blue", label=f"mean of {window}")
    axes.set(xlabel="step", ylabel="loss", yscale="log", title=f"{workdir.name}: training loss")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.tight_layout()
    figure.savefig(workdir / CURVE_FILE)
    plt.close(figure)
