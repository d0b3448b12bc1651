"""Two processes of four devices each, started by the local launcher, are one process of eight."""

import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from imagen_jax.datasets.captions import training_captions
from imagen_jax.parallel.sharding import make_mesh
from imagen_jax.pipelines import output_dir
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.stages.precompute_text import embed
from imagen_jax.text.embedding_cache import EmbeddingCache
from imagen_jax.training.loop import train
from imagen_jax.training.metric_writer import read_metrics
from tests.helpers.configs import ROOT, eight_devices, free_port, one_device, restored
from tests.launch.cloud import Cloud, make_project
from tests.launch.tiny_base import get_config

# What local.sh sets, for workers that no local.sh starts.
SIMULATED = {
    "JAX_NUM_CPU_DEVICES": "4",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
}
PROMPTS = ["a red circle", "two blue squares", "a ring", "a small green cross", "an object"]


def by_two_processes(module, *arguments):
    ended = subprocess.run(
        ["launch/local.sh", "--processes=2", "--devices=4", "--", sys.executable, "-m", module]
        + [str(argument) for argument in arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    return ended


def test_processes_read_the_examples_that_their_devices_share():
    by_two_processes("tests.launch.rows")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "base"
    train(get_config(), folder)
    return folder


@pytest.fixture(scope="module")
def two_said(tmp_path_factory):
    """What the two processes said while they trained, and the stage's folder."""
    folder = tmp_path_factory.mktemp("two") / "base"
    return by_two_processes(
        "imagen_jax.train", f"--config={ROOT}/tests/launch/tiny_base.py", f"--workdir={folder}"
    ), folder


@pytest.fixture(scope="module")
def two(two_said):
    return two_said[1]


def same(folder, other):
    """The states of both, on one device, are the same but for the order of sums."""
    (state, position), (other_state, other_position) = (
        restored(each, get_config(), one_device()) for each in (folder, other)
    )
    assert position == other_position == {"next_index": 4}
    assert int(state.step) == int(other_state.step) == 4
    for leaf, other_leaf in zip(jax.tree.leaves(state), jax.tree.leaves(other_state), strict=True):
        np.testing.assert_allclose(leaf, other_leaf, atol=1e-5)


def test_the_losses_are_the_same(one, two):
    found = [read_metrics(folder) for folder in (one, two)]
    lines = [
        [[line["step"], line["loss"], line["gradient_norm"]] for line in metrics if "loss" in line] for metrics in found
    ]
    assert len(lines[0]) == 4
    np.testing.assert_allclose(*lines, atol=1e-5)
    held_out = [
        [value for line in metrics for name, value in line.items() if name.startswith("held_out_loss")]
        for metrics in found
    ]
    assert held_out[0]
    np.testing.assert_allclose(*held_out, atol=1e-5)


def test_the_checkpoint_restored_onto_one_device_is_the_same(one, two):
    same(one, two)


def test_one_process_goes_on_from_where_two_stopped(one, two, tmp_path):
    shutil.copytree(two, tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / "checkpoints" / "4")
    train(get_config(), tmp_path / "base")
    assert "resumed at step 2" in (tmp_path / "base" / "log.txt").read_text()
    same(one, tmp_path / "base")


def test_both_write_the_checkpoint(two):
    state, _ = restored(two, get_config(), make_mesh(get_config().mesh))
    assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(state.params))
    for process in (0, 1):
        data = two / "checkpoints" / "4" / "params" / f"ocdbt.process_{process}" / "d"
        assert sum(path.stat().st_size for path in data.iterdir()) > 10_000


def test_one_alone_writes_records_and_speaks(two_said):
    ended, folder = two_said
    log = (folder / "log.txt").read_text()
    assert log.count("started at step 0") == 1
    assert "8 device(s) of 2 process(es)" in log
    assert log.count("done at step 4") == 1
    assert len(list((folder / "tensorboard").iterdir())) == 1
    assert ended.stdout.count("trained to step 4") == 1
    assert ended.stdout.count("compiling the training step") == 1
    assert "images/s" in ended.stderr
    others = "".join(line for line in (ended.stdout + ended.stderr).splitlines() if line.startswith("[1]"))
    assert "images/s" not in others
    assert "base" not in others


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_the_previews_are_the_same(one, two):
    name = "previews/00000004.png"
    assert pixels(one / name).std() > 10
    assert np.abs(pixels(one / name) - pixels(two / name)).max() <= 1


def test_two_processes_embed_what_one_does(tmp_path):
    config = get_config()
    config.data.examples = 22
    (tmp_path / "one").mkdir()
    embed(config, tmp_path / "one", "bfloat16", batch_size=8, shard_rows=8)
    flag_values = ["--config.data.examples=22", "--batch_size=8", "--shard_rows=8", f"--out={tmp_path}/two"]
    ended = by_two_processes("imagen_jax.embed", f"--config={ROOT}/tests/launch/tiny_base.py", *flag_values)
    assert ended.stdout.count("distinct of 44 captions and the empty one, in 6 shard(s)") == 1
    assert "24 captions embedded by this process just now" in ended.stdout  # three shards of six
    one, two = (EmbeddingCache(tmp_path / name) for name in ("one", "two"))
    assert one.plan == two.plan
    captions = [caption for i in range(44) for caption in training_captions(config)[i]]
    (found, mask), (other, other_mask) = one(captions), two(captions)
    np.testing.assert_array_equal(mask, other_mask)
    np.testing.assert_allclose(found.astype(np.float32), other.astype(np.float32), atol=1e-5, rtol=2**-7)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


@pytest.mark.skipif(sys.platform != "linux", reason="workers of TPUs run Linux")
def test_the_workers_of_a_tpu_draw_what_one_process_draws_in_its_order(two, tmp_path):
    """Five of eight pictures are asked for: each worker draws four."""
    cloud = Cloud(tmp_path / "world").build()
    cloud.python(f'exec {sys.executable} "$@"')
    cloud.begin("ACTIVE")
    project = make_project(tmp_path / "project", "launch", "imagen_jax")
    environment = cloud.environment() | SIMULATED | {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}"}

    def tpu(command, *run):
        place = ["--name=imagen", "--project=my-project", "--zone=us-central2-b"]
        arguments = [project / "launch" / "tpu.sh", command, *place, *run]
        return subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True).stdout

    tpu("install")
    # one picture is there already, as of a run that was broken off, and marked
    cascade = ImagenPipeline.from_pretrained([two], eight_devices())
    out = tmp_path / "drawn"
    output_dir.prepare(out, output_dir.run_manifest(cascade.stages, [two], PROMPTS, 0, None), overwrite=False)
    output_dir.save(out, np.full((5, 8, 8, 3), 77, np.uint8), 0, np.arange(5) == 2)
    prompts = "; ".join(PROMPTS)
    tpu("run", "--", "sample", f"--stages={two}", f"--prompts={prompts}", f"--out={tmp_path}/drawn")
    while (state := tpu("state")) == "TPU READY, run running\n":
        time.sleep(1)
    cloud.end_workers()
    assert state == "TPU READY, run exited 0\n"
    drawn = cascade.sample(PROMPTS, seed=0)[-1]
    files = sorted((out / "images").iterdir())
    assert len(files) == len(PROMPTS)
    assert (pixels(files.pop(2)) == 77).all()
    for path, image in zip(files, np.delete(drawn, 2, axis=0), strict=True):
        assert np.abs(pixels(path) - image.astype(int)).max() <= 1
    assert len({image.tobytes() for image in drawn}) == len(PROMPTS)
