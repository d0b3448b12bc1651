"""Whole runs in a bucket: trained, killed, resumed to the bit, sampled, evaluated and embedded, all on gs://."""

import json
import re
import signal

import numpy as np
import pytest

from imagen_jax.errors import TrainingError
from imagen_jax.images.grid import read_png
from imagen_jax.io import uploads
from imagen_jax.stages.checkpoint_folder import checkpoint_folder
from imagen_jax.stages.precompute_text import embed
from imagen_jax.training.loop import train
from imagen_jax.training.metric_writer import read_metrics
from tests.faults import tiny
from tests.faults.harness import Training, difference, trained
from tests.helpers.cli import run_command
from tests.helpers.configs import base_config, contents

SAVE_EVERY = 16
pytest_plugins = ("tests.helpers.fixtures",)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk") / "base"
    trained(folder, save_every=SAVE_EVERY)
    return folder


@pytest.fixture(scope="module")
def killed_run(bucket_server, tmp_path_factory):
    """Trained in a bucket that fails and is slow, killed, and trained to the end."""
    workdir, log = bucket_server / "killed" / "base", tmp_path_factory.mktemp("logs") / "out"
    bucket_server.faults.rate, bucket_server.faults.seconds = 0.02, 0.002
    options = {"log_file": log, "variables": bucket_server.environment, "save_every": SAVE_EVERY}
    with Training(workdir, **options) as training:
        assert training.until(checkpoint_folder(workdir / "checkpoints").steps), training.text()
        training.send(signal.SIGKILL)
    trained(workdir, **options)
    assert bucket_server.faults.failed
    bucket_server.faults.reset()
    return workdir


@pytest.mark.slow
def test_killed_run_equals_undisturbed(killed_run, undisturbed):
    assert difference(killed_run, undisturbed) == 0


@pytest.mark.slow
def test_workdir_has_the_same_files(killed_run, undisturbed):
    """All but parts of logs and of events, and the claim's object, which is deleted at the end."""
    on_disk = {name.split("/")[0] for name in contents(undisturbed)} - {".lock"}
    in_bucket = {path.name for path in killed_run.iterdir()}
    assert {re.sub(r"\.\d{4}$", "", name) for name in in_bucket} == on_disk
    assert (killed_run / "config.json").read_bytes() == (undisturbed / "config.json").read_bytes()
    log = uploads.read_appended(killed_run / "log.txt").decode()
    assert log.count("resumed at step") == 1 and "done at step" in log
    assert b"loss" in b"".join(path.read_bytes() for path in (killed_run / "tensorboard").iterdir())
    names = {path.name for path in (killed_run / "checkpoints").iterdir()}
    assert names == {path.name for path in (undisturbed / "checkpoints").iterdir()}


@pytest.mark.slow
def test_sample_and_evaluate(killed_run, undisturbed, bucket, tmp_path):
    """The same images as on a disk; what is complete is kept."""
    outs = [bucket / "samples", tmp_path / "samples"]
    prompts = "--prompts=a red circle; a blue square; a green ring"
    for folder, out in zip((killed_run, undisturbed), outs, strict=True):
        assert run_command("sample", f"--stages={folder}", f"--out={out}", prompts) == 0
    assert (outs[0] / "samples.png").read_bytes() == (outs[1] / "samples.png").read_bytes()
    for name in ("images/0000.png", "images/0002.png"):  # their texts name the checkpoints of two runs
        assert np.array_equal(read_png(outs[0] / name), read_png(outs[1] / name))
    before = (outs[0] / "images/0001.png").read_bytes()
    generation = (outs[0] / "images/0000.png").stat().generation
    (outs[0] / "images/0001.png").write_bytes(b"broken")
    assert run_command("sample", f"--stages={killed_run}", f"--out={outs[0]}", prompts) == 0
    assert (outs[0] / "images/0001.png").read_bytes() == before
    assert (outs[0] / "images/0000.png").stat().generation == generation
    assert run_command("sample", f"--stages={killed_run}", f"--out={outs[0]}", "--prompts=a cross") == 2

    evaluate = ("evaluate", f"--stages={killed_run}", "--config=configs/shapes_eval.py", "--config.num_samples=4")
    assert run_command(*evaluate, f"--out={bucket / 'scores'}") == 0
    assert json.loads((bucket / "scores" / "diagnostics.json").read_bytes())[0]["step"] == tiny.STEPS


@pytest.mark.slow
def test_embed_and_train_from_cache(bucket, tmp_path, monkeypatch):
    """The same files as on a disk; training reads copies of them."""
    monkeypatch.setattr("imagen_jax.io.local_copy.CACHE", str(tmp_path / "cache"))
    config = base_config(**{"data.num_examples": 22, "training.steps": 1})
    outs = [bucket / "embeddings", tmp_path / "embeddings"]
    for out in outs:
        embed(config, out, shard_rows=16)
    assert {path.name for path in outs[0].iterdir()} == {path.name for path in outs[1].iterdir()}
    for path in outs[1].iterdir():
        assert (outs[0] / path.name).read_bytes() == path.read_bytes()
    assert train(config.with_changes({"text.cache": str(outs[0])}), bucket / "from_cache").step == 1
    assert len(list((tmp_path / "cache").rglob("shard-*"))) > 1


def test_wrong_buckets_are_sentences(bucket, capsys):
    train_command = ("train", "--config=configs/shapes_base.py:tiny")
    assert run_command(*train_command, "--workdir=gs://no-such-bucket/run") == 2
    assert run_command("sample", "--stages=gs://no-such-bucket/run", "--prompts=a", "--out=runs/none") == 2
    bucket.faults.denied = True
    assert run_command(*train_command, f"--workdir={bucket / 'denied'}") == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error")] == lines
    assert sum("no-such-bucket" in line for line in lines) == 2 and "denies access" in lines[-1]


@pytest.mark.slow
def test_bucket_that_vanishes(bucket):
    """One sentence; what was saved is there when the bucket is back, and the run continues."""
    workdir = bucket / "vanished"
    training = {"training.save_every": 2, "training.preview_every": 4, "training.steps": 4}
    config = tiny.get_config().with_changes(training)
    train(config.with_changes({"training.steps": 2}), workdir)
    before = (workdir / "checkpoints").tree()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingError, match="no bucket 'pictures'"):
        patch.setattr("imagen_jax.training.loop._write_preview", lambda *_: setattr(bucket.faults, "vanished", True))
        train(config, workdir)
    bucket.faults.reset()
    assert (workdir / "checkpoints").tree().items() >= before.items()
    assert train(config, workdir).step == 4
    assert [line["step"] for line in read_metrics(workdir) if "loss" in line] == [1, 2, 3, 4]
