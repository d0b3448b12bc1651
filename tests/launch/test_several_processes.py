"""Two processes with four devices each, started by local.sh, give the results of one process with eight."""

import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from imagen_jax.datasets.captions import training_captions
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.pipelines import output_dir
from imagen_jax.pipelines.find_stages import CASCADES
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.loading import load_stage
from imagen_jax.pipelines.request import SampleRequest
from imagen_jax.pipelines.texts import Texts
from imagen_jax.stages.precompute_text import embed
from imagen_jax.stages.workdir import read_config
from imagen_jax.text.embedding_cache import EmbeddingCache
from imagen_jax.training.loop import train
from imagen_jax.training.metric_writer import read_metrics
from tests.helpers.configs import ROOT, eight_devices, free_port, one_device, restored
from tests.launch.cloud import Cloud, make_project
from tests.launch.tiny_base import get_config

# The environment that local.sh sets, for workers that tpu.sh starts.
SIMULATED = {
    "JAX_NUM_CPU_DEVICES": "4",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
}
PROMPTS = ["a red circle", "two blue squares", "a ring", "a small green cross", "an object"]


def run_in_two_processes(*arguments):
    """Runs `python -m ARGUMENTS…` by local.sh; returns the ended process."""
    ended = subprocess.run(
        ["launch/local.sh", "--processes=2", "--devices=4", "--", sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    return ended


def test_processes_read_rows_of_their_devices():
    run_in_two_processes("tests.launch.check_batch")


def test_processes_merge_states_of_metrics():
    run_in_two_processes("tests.launch.check_metrics")


def test_processes_read_slices_of_a_published_stage(tmp_path):
    whole, damaged = (shutil.copytree(CASCADES / "shapes", tmp_path / name) for name in ("whole", "damaged"))
    weights = damaged / "stage_0" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    run_in_two_processes("tests.launch.check_published", whole, damaged)


@pytest.fixture(scope="module")
def single_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "base"
    train(get_config(), folder)
    return folder


@pytest.fixture(scope="module")
def trained_pair(tmp_path_factory):
    """Returns (ended process, stage folder) of a training in two processes."""
    folder = tmp_path_factory.mktemp("two") / "base"
    config = f"--config={ROOT}/tests/launch/tiny_base.py"
    return run_in_two_processes("imagen_jax", "train", config, f"--workdir={folder}"), folder


@pytest.fixture(scope="module")
def pair_folder(trained_pair):
    return trained_pair[1]


def assert_same_state(folder, other):
    """Asserts that the states of both are equal on one device, up to the order of sums."""
    (state, position), (other_state, other_position) = (
        restored(path, get_config(), one_device()) for path in (folder, other)
    )
    assert position == other_position == {"next_index": 4}
    assert int(state.step) == int(other_state.step) == 4
    for leaf, other_leaf in zip(jax.tree.leaves(state), jax.tree.leaves(other_state), strict=True):
        np.testing.assert_allclose(leaf, other_leaf, atol=1e-5)


def test_same_losses(single_folder, pair_folder):
    metrics = [read_metrics(folder) for folder in (single_folder, pair_folder)]
    lines = [[[line["step"], line["loss"], line["gradient_norm"]] for line in run if "loss" in line] for run in metrics]
    assert len(lines[0]) == 4
    np.testing.assert_allclose(*lines, atol=1e-5)
    validation_losses = [
        [value for line in run for name, value in line.items() if name.startswith("validation_loss")] for run in metrics
    ]
    assert validation_losses[0]
    np.testing.assert_allclose(*validation_losses, atol=1e-5)


def test_same_checkpoint(single_folder, pair_folder):
    assert_same_state(single_folder, pair_folder)


def test_one_process_resumes_run_of_two(single_folder, pair_folder, tmp_path):
    shutil.copytree(pair_folder, tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / "checkpoints" / "4")
    train(get_config(), tmp_path / "base")
    assert "resumed at step 2" in (tmp_path / "base" / "log.txt").read_text()
    assert_same_state(single_folder, tmp_path / "base")


def test_both_write_checkpoint(pair_folder):
    state, _ = restored(pair_folder, get_config(), make_mesh(get_config().mesh.axes))
    assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(state.params))
    for process in (0, 1):
        data = pair_folder / "checkpoints" / "4" / "params" / f"ocdbt.process_{process}" / "d"
        assert sum(path.stat().st_size for path in data.iterdir()) > 10_000


def test_main_process_alone_writes_and_prints(trained_pair):
    ended, folder = trained_pair
    log = (folder / "log.txt").read_text()
    assert log.count("started at step 0") == 1
    assert "8 × cpu in 2 process(es)" in log
    assert log.count("done at step 4") == 1
    assert len(list((folder / "tensorboard").iterdir())) == 1
    assert ended.stdout.count("trained to step 4") == 1
    assert (ended.stdout + ended.stderr).count("compiling the training step") == 1
    assert "images/s" in ended.stderr
    others = "".join(line for line in (ended.stdout + ended.stderr).splitlines() if line.startswith("[1]"))
    assert "images/s" not in others
    assert "base" not in others


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_same_previews(single_folder, pair_folder):
    name = "previews/00000004.png"
    assert pixels(single_folder / name).std() > 10
    assert np.abs(pixels(single_folder / name) - pixels(pair_folder / name)).max() <= 1


@pytest.mark.slow
def test_fine_tuning(single_folder, tmp_path):
    """Both processes read the source, write their part of the frozen parameters, and merge them in previews."""
    changes = [f"--config.training.init_from={single_folder}", "--config.training.trainable=('^out/',)"]
    config = f"--config={ROOT}/tests/launch/tiny_base.py"
    run_in_two_processes("imagen_jax", "train", config, f"--workdir={tmp_path / 'tuned'}", *changes)
    before, after = (
        load_stage(folder, read_config(folder), one_device()).params for folder in (single_folder, tmp_path / "tuned")
    )
    assert not np.array_equal(before.pop("out")["kernel"], after.pop("out")["kernel"])
    jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.slow
def test_same_embeddings(tmp_path):
    config = get_config().with_changes({"data.num_examples": 22})
    (tmp_path / "one").mkdir()
    embed(config, tmp_path / "one", "bfloat16", batch_size=8, shard_rows=8)
    arguments = ["--config.data.num_examples=22", "--batch_size=8", "--shard_rows=8", f"--out={tmp_path}/two"]
    config_flag = f"--config={ROOT}/tests/launch/tiny_base.py"
    ended = run_in_two_processes("imagen_jax", "embed", config_flag, *arguments)
    assert ended.stdout.count("distinct of 44 captions and the empty one, in 6 shard(s)") == 1
    assert "24 captions embedded by this process just now" in ended.stdout  # three shards of six
    one, two = (EmbeddingCache(tmp_path / name) for name in ("one", "two"))
    assert one.plan == two.plan
    captions = [caption for i in range(44) for caption in training_captions(config)[i]]
    (embeddings, mask), (other, other_mask) = one(captions), two(captions)
    np.testing.assert_array_equal(mask, other_mask)
    np.testing.assert_allclose(embeddings.astype(np.float32), other.astype(np.float32), atol=1e-5, rtol=2**-7)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="workers of TPUs run Linux")
def test_tpu_workers_sample_same_images(pair_folder, tmp_path):
    """Five images are padded to eight: each worker samples four."""
    cloud = Cloud(tmp_path / "world").build()
    cloud.python(f'exec {sys.executable} "$@"')
    cloud.start_workers("ACTIVE")
    project = make_project(tmp_path / "project", "launch", "imagen_jax")
    environment = cloud.environment() | SIMULATED | {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}"}

    def tpu(command, *run):
        tpu_flags = ["--name=imagen", "--project=my-project", "--zone=us-central2-b"]
        arguments = [project / "launch" / "tpu.sh", command, *tpu_flags, *run]
        return subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True).stdout

    tpu("install")
    # one image exists already, as in an interrupted run, and can be recognized
    pipeline = ImagenPipeline.from_pretrained([pair_folder], eight_devices())
    out = tmp_path / "samples"
    output_dir.prepare(out, output_dir.run_manifest(pipeline.stages, SampleRequest(Texts(PROMPTS))), overwrite=False)
    output_dir.save(out, {2: np.full((8, 8, 3), 77, np.uint8)}, {2: {}})
    prompts = "; ".join(PROMPTS)
    tpu("run", "--", "sample", f"--stages={pair_folder}", f"--prompts={prompts}", f"--out={out}")
    while (state := tpu("state")) == "TPU READY, run running\n":
        time.sleep(1)
    cloud.end_workers()
    assert state == "TPU READY, run exited 0\n"
    samples = pipeline(PROMPTS).images
    files = sorted((out / "images").iterdir())
    assert len(files) == len(PROMPTS)
    assert (pixels(files.pop(2)) == 77).all()
    for path, image in zip(files, np.delete(samples, 2, axis=0), strict=True):
        assert np.abs(pixels(path) - image.astype(int)).max() <= 1
    assert len({image.tobytes() for image in samples}) == len(PROMPTS)
