import json

import numpy as np
from PIL import Image
from tensorboardX.proto import event_pb2

from imagen_jax.evaluation.validation_loss import NOISE_LEVELS
from imagen_jax.training.diffusion import NOISE_BINS
from imagen_jax.training.metric_writer import MetricWriter, read_metrics
from imagen_jax.training.progress_bar import NoiseBinMeter
from imagen_jax.training.run_files import RunFiles
from tests.helpers.configs import STEPS

pytest_plugins = ("tests.helpers.fixtures",)


def written(folder, steps, first=0):
    records = MetricWriter(RunFiles(folder), first)
    for step in steps:
        records.scalars(step, {"loss": 1.0 / step})
    records.close()


def test_what_is_written_is_read(tmp_path):
    written(tmp_path, range(1, 6))
    assert read_metrics(tmp_path) == [{"step": step, "loss": 1.0 / step} for step in range(1, 6)]


def test_a_run_that_goes_on_forgets_what_came_after(tmp_path):
    written(tmp_path, range(1, 6))
    written(tmp_path, range(4, 8), first=3)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]


def test_a_torn_last_line_is_left_out(tmp_path):
    written(tmp_path, range(1, 4))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    written(tmp_path, [4], first=3)
    # and does not stick to the next one
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_no_metrics_are_no_error(tmp_path):
    assert read_metrics(tmp_path) == []
    written(tmp_path, [])
    assert not list(tmp_path.glob("*.png"))


def test_a_training_run_leaves_all_that_a_person_wants_to_see(base_folder):
    with Image.open(base_folder / "loss.png") as curve:
        assert curve.width > 300
        assert len(np.unique(np.asarray(curve))) > 10
    log = (base_folder / "log.txt").read_text().splitlines()
    assert "8 × cpu" in log[0] and "started at step 0" in log[1]
    for step in range(1, STEPS + 1):
        assert any(f"step {step}: " in line and "loss" in line and "data_wait" in line for line in log)
    assert not any("corrupt" in line for line in log)
    assert log[-1].endswith(f"done at step {STEPS}")
    for step in (3, 6):
        with Image.open(base_folder / "previews" / f"{step:08d}.png") as preview:
            assert preview.mode == "RGB"


def test_losses_of_bands_are_means_over_all_steps_since_the_last_record():
    bands = NoiseBinMeter()
    bands.add(np.array([3.0, 0.0, 2.0]), np.array([2, 0, 1]))
    bands.add(np.array([6.0, 0.0, 0.0]), np.array([1, 0, 0]))
    # the band without an example is in no record, and does not spoil one
    assert bands.means() == {"loss_at_noise/0-0.33": 3.0, "loss_at_noise/0.67-1": 2.0}
    assert bands.summary() == ["3", "-", "2"]


def test_loss_by_noise_bin(base_folder):
    lines = [line for line in read_metrics(base_folder) if "loss" in line]
    assert len(lines) == STEPS
    for line in lines:
        bands = [value for name, value in line.items() if name.startswith("loss_at_noise/")]
        assert len(bands) == NOISE_BINS
        assert min(bands) < line["loss"] < max(bands)
    assert "NaN" not in (base_folder / "metrics.jsonl").read_text()
    said = [
        line for line in (base_folder / "log.txt").read_text().splitlines() if "loss from low to high noise" in line
    ]
    assert len(said) == STEPS
    assert max(map(len, said)) < 240


def test_preview_metrics(base_folder, sr_folder):
    of_both = {"step", "saturation", "saturation_real", *(f"validation_loss_at_noise/{x:.2f}" for x in NOISE_LEVELS)}
    of_larger = {"consistency_db", *(f"color_drift/{name}" for name in ("red", "green", "blue", "rms"))}
    for folder, expected in ((base_folder, of_both), (sr_folder, of_both | of_larger)):
        measured = [line for line in read_metrics(folder) if "saturation" in line]
        assert [line["step"] for line in measured] == [3, 6]
        for line in measured:
            assert set(line) == expected
            assert np.isfinite(list(line.values())).all()
        # on the same pictures and the same noise: what differs is what was learned
        curves = [[line[name] for name in expected if name.startswith("validation_loss")] for line in measured]
        assert np.abs(np.subtract(*curves)).min() > 0
        with Image.open(folder / "diagnostics.png") as figure:
            assert figure.width > 600
            # two panels in a row, and two more of what only larger pictures have
            assert (figure.height > figure.width / 2) == (folder is sr_folder)


def test_tensorboard_gets_the_metrics(base_folder):
    (events,) = (base_folder / "tensorboard").glob("events.out.tfevents.*")
    tags = {value.tag for event in read_events(events) for value in event.summary.value}
    assert {
        "loss",
        "loss_at_noise/0-0.2",
        "loss_at_noise/0.8-1",
        "validation_loss_at_noise/0.95",
        "saturation",
        "gradient_norm",
        "parameter_norm",
        "images_per_second",
        "preview",
    } <= tags


def read_events(path):
    """The events of a file: length (8 bytes), its check (4), the event, its check (4), and again."""
    data, start = path.read_bytes(), 0
    while start < len(data):
        size = int.from_bytes(data[start : start + 8], "little")
        yield event_pb2.Event.FromString(data[start + 12 : start + 12 + size])
        start += 16 + size
