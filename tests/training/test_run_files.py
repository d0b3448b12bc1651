"""What is only written down does not stop a run: each failure is said once and tried again."""

import errno
import json
import os
import random
import shutil

import jax
import numpy as np
import pytest

from imagen_jax.io.appended import AppendedFile
from imagen_jax.training import metric_writer
from imagen_jax.training.goodput import GOODPUT_FILE, Clock, Goodput
from imagen_jax.training.loop import train
from imagen_jax.training.metric_writer import METRICS_FILE, MetricWriter, read_metrics
from imagen_jax.training.run_files import LOG_FILE, RunFiles
from tests.helpers.configs import STEPS, base_config, one_device, restored

pytest_plugins = ("tests.helpers.fixtures",)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(AppendedFile, "is_due", True)


@pytest.fixture
def full(monkeypatch):
    """A disk that is full while its entry is True."""
    state, real = {"full": True}, os.write

    def write(descriptor, data):
        if state["full"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    return state


def test_first_line_precedes_whatever_is_logged_first(tmp_path):
    files = RunFiles(tmp_path, "it on 1 × cpu")
    assert not (tmp_path / LOG_FILE).exists()
    files.warn("a warning")
    files.log("started")
    lines = (tmp_path / LOG_FILE).read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["it on 1 × cpu", "a warning", "started"]


def test_full_disk_is_said_once(tmp_path, full, caplog):
    files = RunFiles(tmp_path)
    writer = MetricWriter(files, 0)
    for step in (1, 2, 3):
        writer.scalars(step, {"loss": 1.0})
        writer.log(f"step {step}")
    (message,) = caplog.messages
    assert str(tmp_path) in message and os.strerror(errno.ENOSPC) in message and "bytes are free" in message
    full["full"] = False
    writer.scalars(4, {"loss": 1.0})
    writer.log("step 4")
    assert len(caplog.messages) == 2 and "no record is lost" in caplog.messages[1]
    files.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
    log = (tmp_path / LOG_FILE).read_text()
    assert all(text in log for text in ("step 1", "step 3", "step 4", *caplog.messages))
    full["full"] = True
    writer.log("step 5")
    assert len(caplog.messages) == 3


def test_lost_at_the_end_is_said(tmp_path, full, caplog):
    files = RunFiles(tmp_path)
    files.log("never written")
    files.close()
    assert "are lost" in caplog.messages[-1] and LOG_FILE in caplog.messages[-1]


def test_failing_plot(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no font")

    monkeypatch.setattr(metric_writer, "plot_loss", fail)
    writer = MetricWriter(RunFiles(tmp_path), 0)
    writer.scalars(1, {"loss": 1.0})
    writer.close()
    assert "loss.png" in caplog.text and "no font" in caplog.text


def test_folder_that_is_deleted(tmp_path, caplog):
    workdir = tmp_path / "run"
    workdir.mkdir()
    files = RunFiles(workdir)
    writer = MetricWriter(files, 0)
    writer.scalars(1, {"loss": 1.0})
    shutil.rmtree(workdir)
    writer.scalars(2, {"loss": 1.0})
    assert len(caplog.messages) == 1
    workdir.mkdir()
    writer.scalars(3, {"loss": 1.0})
    files.close()
    assert [line["step"] for line in read_metrics(workdir)] == [2, 3]


@pytest.mark.slow
def test_run_without_any_record(tmp_path, base_folder, caplog):
    """Every record of the run fails from its start to its end: what it learns is the same."""
    workdir = tmp_path / "run"
    for folder in (METRICS_FILE, GOODPUT_FILE, "loss.png", "diagnostics.png"):
        (workdir / folder / "not empty").mkdir(parents=True)
    for file in ("previews", "tensorboard"):
        (workdir / file).touch()
    (workdir / LOG_FILE).symlink_to("/dev/full")
    assert train(base_config(), workdir).step == STEPS
    states = [restored(folder, base_config(), one_device())[0] for folder in (workdir, base_folder)]
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, states), strict=True))
    failures = [message for message in caplog.messages if "; the run continues" in message]
    assert len(failures) == len(set(failures)) >= 3
    for number in (errno.EISDIR, errno.ENOSPC):
        assert sum(os.strerror(number) in message for message in failures) == 1


def reopened(folder, name):
    """Resumes in a folder with one of the files; returns what is left of the lines."""
    files = RunFiles(folder)
    if name == METRICS_FILE:
        MetricWriter(files, 10**6).scalars(10**6, {"loss": 1.0})
    else:
        Goodput(files, 10**6, Clock()).summary()
    files.close()
    return (folder / name).read_bytes().split(b"\n")[:-2]


@pytest.mark.parametrize("name", [METRICS_FILE, GOODPUT_FILE])
@pytest.mark.parametrize("damage", ["flip", "cut", "bytes"])
def test_damage_costs_the_lines_touched(base_folder, tmp_path, name, damage):
    data, rng = (base_folder / name).read_bytes(), random.Random(0)
    lines = data.split(b"\n")[:-1]
    for trial in range(60):
        folder = tmp_path / str(trial)
        folder.mkdir()
        start, broken = rng.randrange(len(data)), bytearray(data)
        if damage == "flip":
            end = start + 1
            broken[start] ^= 1 << rng.randrange(8)
        elif damage == "bytes":
            end = min(start + rng.randrange(1, 60), len(data))
            broken[start:end] = rng.randbytes(end - start)
        else:
            end = min(start + rng.randrange(1, 600), len(data))
            del broken[start:end]
        (folder / name).write_bytes(broken)
        # a line is touched if any of its bytes is, or the line breaks that it is between
        first, last = data[:start].count(b"\n"), data[:end].count(b"\n")
        kept = [line for index, line in enumerate(lines) if not first <= index <= last]
        left = reopened(folder, name)
        assert [line for line in left if line in kept] == kept
        if len(left) < len(kept) and (folder / f"{name}.damaged").exists():
            assert (folder / f"{name}.damaged").stat().st_size


def test_damaged_line_is_moved(tmp_path, caplog):
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, 6)]
    for damaged in ('{"step": "2", "loss": 1.0}', '{"step": 2, "loss": "1"}', '{"step": true}', '{"stfp": 2}', "[2]"):
        caplog.clear()
        text = "\n".join([lines[0], damaged, *lines[2:]]) + "\n"
        (tmp_path / METRICS_FILE).write_text(text)
        (tmp_path / f"{METRICS_FILE}.damaged").unlink(missing_ok=True)
        MetricWriter(RunFiles(tmp_path), 5)
        assert (tmp_path / METRICS_FILE).read_text().splitlines() == [lines[0], *lines[2:]]
        assert (tmp_path / f"{METRICS_FILE}.damaged").read_text() == damaged + "\n"
        (message,) = caplog.messages
        assert "1 damaged line(s), 2:" in message and METRICS_FILE in message


def test_damaged_step_in_the_middle_is_moved(tmp_path):
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 92, 3)]
    (tmp_path / METRICS_FILE).write_text("\n".join(lines) + "\n")
    MetricWriter(RunFiles(tmp_path), 5)
    assert (tmp_path / METRICS_FILE).read_text().splitlines() == [lines[0], lines[2]]
    assert (tmp_path / f"{METRICS_FILE}.damaged").read_text().splitlines() == [lines[1]]


def test_resume_on_a_full_disk(tmp_path, full, caplog):
    """Lines that come after the step are cut off, which needs no space; damaged ones stay until there is some."""
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, 6)]
    (tmp_path / METRICS_FILE).write_text("\n".join(lines) + "\n")
    writer = MetricWriter(RunFiles(tmp_path), 3)
    assert (tmp_path / METRICS_FILE).read_text().splitlines() == lines[:3]
    (tmp_path / METRICS_FILE).write_text("\n".join(["damaged", *lines]) + "\n")
    writer = MetricWriter(RunFiles(tmp_path), 3)
    assert (tmp_path / METRICS_FILE).read_text().splitlines() == ["damaged", *lines[:3]]
    assert len(caplog.messages) == 1 and "written again" not in caplog.text
    full["full"] = False
    writer.scalars(6, {"loss": 1.0})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 6]


def test_line_cut_by_a_kill_is_not_damage(tmp_path, caplog):
    (tmp_path / METRICS_FILE).write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    MetricWriter(RunFiles(tmp_path), 5)
    assert not caplog.messages and not (tmp_path / f"{METRICS_FILE}.damaged").exists()
    assert (tmp_path / METRICS_FILE).read_text() == '{"step": 1, "loss": 1.0}\n'
