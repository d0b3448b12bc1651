"""What a training run records: metrics for TensorBoard and as JSON lines, a text log, plots of both."""

from __future__ import annotations

import itertools
import json
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from imagen_jax.images.plots import plot_loss, plot_run_diagnostics
from imagen_jax.io.json_lines import is_count, is_number, read_json_lines
from imagen_jax.training.run_files import RunFiles

METRICS_FILE = "metrics.jsonl"
LOSS_FILE = "loss.png"
DIAGNOSTICS_FILE = "diagnostics.png"
TENSORBOARD = "tensorboard"
_event_files = itertools.count()


class MetricWriter:
    """Writes the metrics of a run to its folder; a resumed run continues them and drops what came after `step`.

    Args:
        files: the run's folder.
        step: the step that training resumes from.
    """

    def __init__(self, files: RunFiles, step: int) -> None:
        self._files = files
        files.open_json_lines(METRICS_FILE, is_metrics, lambda lines: [line["step"] <= step for line in lines])
        self._events = _EventFile(files, step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes the metrics of a step."""
        self._files.append(METRICS_FILE, json.dumps({"step": step, **values}).encode() + b"\n")
        self._events.append(step, [summary.scalar(name, value) for name, value in values.items()])

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes an image uint8 [H, W, 3] for TensorBoard."""
        self._events.append(step, [summary.image(name, image, dataformats="HWC")])

    def log(self, text: str) -> None:
        """Appends a line with the time to the run's log."""
        self._files.log(text)

    def close(self) -> None:
        """Plots all metrics so far."""
        self._files.flush()
        workdir = self._files.workdir
        for file, plot, name in (
            (LOSS_FILE, plot_loss, "loss"),
            (DIAGNOSTICS_FILE, plot_run_diagnostics, "saturation"),
        ):
            with self._files.attempt(file, Exception):  # a run does not fail for its plots, whatever is wrong
                metrics = read_metrics(workdir)
                if any(name in line for line in metrics):
                    plot(metrics, workdir.name, workdir / file)


class _EventFile:
    """A file of events for TensorBoard, which hides events of earlier files from a step on.

    tensorboardX's own writer has a thread, which a full disk ends; then its queue blocks the run.
    """

    def __init__(self, files: RunFiles, first_step: int) -> None:
        # TensorBoard reads a folder's files in the order of their names
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{next(_event_files)}"
        self._files, self._name = files, f"{TENSORBOARD}/{name}"
        start = Event(step=first_step, session_log=SessionLog(status=SessionLog.START), wall_time=time.time())
        version = Event(file_version="brain.Event:2", wall_time=time.time())
        self._header = _event_record(version) + _event_record(start)

    def append(self, step: int, summaries: list[Summary]) -> None:
        values = [value for each in summaries for value in each.value]
        event = Event(step=step, wall_time=time.time(), summary=Summary(value=values))
        self._files.append(self._name, _event_record(event), header=self._header, separator=b"")


def _event_record(event: Event) -> bytes:
    """Returns an event as a TFRecord: its length, the length's checksum, its bytes, their checksum."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))))


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


def is_metrics(line: dict[str, Any]) -> bool:
    """Returns whether a JSON object is a line of metrics: a step, and numbers by name."""
    return is_count(line.get("step")) and all(map(is_number, line.values()))


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the metrics of a run so far, by step; damaged lines are skipped."""
    return read_json_lines(workdir / METRICS_FILE, is_metrics)
