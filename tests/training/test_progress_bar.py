import re
import time

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data.corrupt import CorruptRecords
from imagen_jax.data.record import CorruptRecordError
from imagen_jax.errors import ConfigError
from imagen_jax.training.loop import train
from imagen_jax.training.progress_bar import ProgressBar, RunInfo
from tests.helpers.configs import base_config, config_of


class Kept:
    """Records in memory."""

    def __init__(self):
        self.values, self.lines = [], []

    def scalars(self, step, values):
        self.values.append(values)

    def log(self, text):
        self.lines.append(text)


def metrics():
    return {"loss": np.float32(1.0), "band_losses": np.ones(5), "band_counts": np.ones(5)}


def progress_of(records, broken=None):
    corrupt = broken or CorruptRecords("it", 10, 1.0)
    return ProgressBar(RunInfo("it", 0, 3, 8, 1), records, corrupt, [], dict)


def test_data_wait(monkeypatch):
    clock = [0.0]

    def passes(seconds=1e-6):
        clock[0] += seconds
        return clock[0]

    monkeypatch.setattr(time, "perf_counter", passes)
    kept = Kept()
    progress, batches = progress_of(kept), (passes(wait) for wait in (3.0, 1.0, 0.0))
    for step in range(1, 4):
        progress.next_batch(batches)
        passes(1.0)
        progress.step(step, metrics())
    progress.close()
    # a step is read when the next is dispatched: with the wait for both
    assert [values["data_wait"] for values in kept.values[:2]] == pytest.approx([4 / 6, 0.0], abs=1e-3)
    assert "data_wait 0.6667" in kept.lines[0]


def test_corrupt_records_are_logged_once_and_counted():
    kept, broken = Kept(), CorruptRecords("it", 10, 1.0)
    progress = progress_of(kept, broken)
    for step, name in enumerate(("a.png", "a.png", "b.png"), 1):
        progress.step(step, metrics())
        broken.count_read(CorruptRecordError(name, "the file is empty"))
    progress.close()
    assert [values["corrupt_records"] for values in kept.values] == [1, 1, 2]
    named = [line for line in kept.lines if line.startswith("corrupt")]
    assert named == [f"corrupt, replaced by another record: {name}.png: the file is empty" for name in "ab"]


def test_corrupt_records_are_logged_before_a_run_ends():
    def batches():
        raise ConfigError("too many broken records")
        yield

    kept, broken = Kept(), CorruptRecords("it", 10, 1.0)
    broken.count_read(CorruptRecordError("a.png", "the file is empty"))
    with pytest.raises(ConfigError, match="too many"):
        progress_of(kept, broken).next_batch(batches())
    assert kept.lines == ["corrupt, replaced by another record: a.png: the file is empty"]


def test_too_many_corrupt_images_end_a_run(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(32):
        Image.new("RGB", (8, 12), (number, 0, 0)).save(photos / f"{number:02d}.png")
    for number in (3, 4, 5):
        (photos / f"{number:02d}.png").write_bytes(b"")
    data = config_of("folder_base.py").data.with_changes(path=str(photos), max_corrupt=0.01, allow_no_captions=True)
    config = base_config(data=data)
    with pytest.raises(ConfigError, match=r"too many corrupt records, \d in \d+ reads of its 26"):
        train(config, tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert re.search(r"corrupt, replaced by another record: 0[345].png: the file is empty", log)
