"""Checkpoints restore onto any mesh, and damaged or incomplete ones are never used."""

import resource
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.config.load import to_json
from imagen_jax.errors import ConfigError, TrainingError
from imagen_jax.io import checksums
from imagen_jax.stages.checkpoints import Checkpoints
from imagen_jax.stages.weights import SavedWeights
from imagen_jax.training.state import abstract_state
from tests.helpers.configs import base_config, contents, eight_devices, one_device, split_devices

CONFIG = base_config()


def init(key):
    return {"kernel": jax.random.normal(key, (128, 256)), "bias": {"b": jnp.arange(4.0)}}


def abstract_on(mesh, init=init, optimizer=None):
    return abstract_state(init, optimizer or optax.adam(1e-3), 0, mesh)


def state_at(step, mesh=None):
    """A state whose parameters, moments and average all differ."""
    _, make = abstract_on(mesh or split_devices())
    state = make()
    return state.replace(
        step=jnp.int32(step),
        ema_params=jax.tree.map(lambda leaf: leaf + step, state.params),
        opt_state=jax.tree.map(lambda leaf: leaf + jnp.asarray(2, leaf.dtype), state.opt_state),
    )


def save_steps(folder, steps, keep=10):
    checkpoints = Checkpoints(folder, keep=keep)
    for step in steps:
        checkpoints.save(state_at(step), {"next_index": 8 * step}, CONFIG)
    checkpoints.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints at steps 1 and 2, saved from a split mesh. For reading only."""
    folder = tmp_path_factory.mktemp("stage")
    save_steps(folder, [1, 2])
    return folder


def assert_equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.parametrize("make_mesh", [one_device, eight_devices, split_devices])
def test_restore_onto_any_mesh(folder, make_mesh):
    abstract, _ = abstract_on(make_mesh())
    checkpoints = Checkpoints(folder)
    state, metadata = checkpoints.restore(abstract)
    checkpoints.close()
    assert_equal(state, state_at(2))
    assert metadata["data"] == {"next_index": 16}
    assert metadata["config"] == to_json(CONFIG)
    assert metadata["versions"]["jax"] == jax.__version__
    for leaf, expected in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert leaf.dtype == expected.dtype
        assert leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim)


@pytest.mark.trap("EMA swapped into parameters")
def test_params_are_not_ema(folder):
    checkpoints = Checkpoints(folder)
    state, _ = checkpoints.restore(abstract_on(one_device())[0])
    checkpoints.close()
    np.testing.assert_allclose(state.ema_params["kernel"] - state.params["kernel"], 2, atol=1e-5)


@pytest.mark.trap("EMA swapped into parameters")
def test_weights_read_only_ema(folder, tmp_path):
    workdir = tmp_path / "stage"
    shutil.copytree(folder, workdir)
    for item in ("params", "opt_state"):
        shutil.rmtree(workdir / "checkpoints" / "2" / item)
    ema = SavedWeights(workdir).load(abstract_on(eight_devices())[0].params)
    assert_equal(ema, state_at(2).ema_params)


def test_reader_writes_nothing(folder):
    before = contents(folder)
    SavedWeights(folder).load(abstract_on(one_device())[0].params)
    assert contents(folder) == before


def test_reader_creates_no_folder(tmp_path):
    checkpoints = Checkpoints(tmp_path / "stage")
    assert checkpoints.latest_step is None
    checkpoints.close()
    assert not (tmp_path / "stage").exists()


@pytest.mark.parametrize(
    "other, message",
    [
        (lambda key: {**init(key), "more": jnp.zeros(2)}, "params/more is missing"),
        (lambda key: {"kernel": init(key)["kernel"]}, "params/bias/b is unexpected"),
        (lambda key: {**init(key), "bias": {"b": jnp.zeros(5)}}, r"params/bias/b is float32\[4\], not float32\[5\]"),
        (lambda key: {**init(key), "bias": {"b": jnp.zeros(4, jnp.bfloat16)}}, "bias/b is float32.*, not bfloat16"),
        (
            lambda key: {f"kernel_{i}": jnp.zeros(1) for i in range(20)},
            "params/kernel_0 is missing.* and [0-9]+ more",
        ),
    ],
    ids=["missing", "unexpected", "shape", "type", "all"],
)
def test_another_model(folder, other, message):
    abstract, _ = abstract_on(one_device(), other)
    checkpoints = Checkpoints(folder)
    for restore, tree in ((checkpoints.restore, abstract), (SavedWeights(folder).load, abstract.params)):
        with pytest.raises(ConfigError, match=message) as error:
            restore(tree)
        assert "does not match the model" in str(error.value)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 1000
    checkpoints.close()


def test_another_optimizer_or_moment_dtype(folder):
    checkpoints = Checkpoints(folder)
    with pytest.raises(ConfigError, match="opt_state/.*/trace/kernel is missing.*opt_state/.*/mu/kernel is unexpected"):
        checkpoints.restore(abstract_on(one_device(), optimizer=optax.sgd(1e-3, momentum=0.9))[0])
    state, _ = checkpoints.restore(abstract_on(one_device(), optimizer=optax.adam(1e-3, mu_dtype=jnp.bfloat16))[0])
    checkpoints.close()
    assert {leaf.dtype for leaf in jax.tree.leaves(state.opt_state[0].mu)} == {jnp.dtype("bfloat16")}


def steps_in(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("keep", [1, 2])
def test_latest_are_kept(tmp_path, keep):
    save_steps(tmp_path, [1, 2, 3], keep)
    assert steps_in(tmp_path) == ["1", "2", "3"][-keep:]


def test_best_is_kept(tmp_path):
    for first in (1, 4):  # the second is a resumed run
        checkpoints = Checkpoints(tmp_path, keep=1, keep_best=True)
        for step, score in enumerate([0.5, 0.3, float("nan")] if first == 1 else [0.4, None, 0.3], first):
            checkpoints.save(state_at(step), {}, CONFIG, score)
        checkpoints.close()
        assert steps_in(tmp_path) == (["2", "3"] if first == 1 else ["6"])


def test_score_is_verified(tmp_path):
    """A flipped bit makes no checkpoint the best."""
    checkpoints = Checkpoints(tmp_path, keep=1, keep_best=True)
    for step, score in enumerate([0.25, 0.75, 0.5], 1):
        checkpoints.save(state_at(step), {}, CONFIG, score)
        checkpoints.wait()
        if step == 2:
            metadata = tmp_path / "checkpoints" / "2" / "_CHECKPOINT_METADATA"
            flipped = metadata.read_bytes().replace(b'"score": 0.75', b'"score": 0.05')
            assert flipped != metadata.read_bytes()
            metadata.write_bytes(flipped)
    checkpoints.close()
    assert steps_in(tmp_path) == ["1", "3"]


def test_step_is_saved_once(tmp_path):
    save_steps(tmp_path, [1])
    before = contents(tmp_path)
    save_steps(tmp_path, [1])
    assert contents(tmp_path) == before


def test_killed_save_is_not_a_checkpoint(folder, tmp_path):
    stage = tmp_path / "stage"
    shutil.copytree(folder, stage)
    leftover = stage / "checkpoints" / "7.orbax-checkpoint-tmp"
    shutil.copytree(folder / "checkpoints" / "2", leftover)
    reader = Checkpoints(stage)
    assert reader.latest_step == 2
    reader.close()
    assert leftover.exists()  # a reader deletes nothing: it may be a save in progress
    writer = Checkpoints(stage, keep=2)
    assert writer.latest_step == 2
    writer.save(state_at(7), {"next_index": 56}, CONFIG)
    writer.close()
    reader = Checkpoints(stage)
    state, metadata = reader.restore(abstract_on(one_device())[0])
    reader.close()
    assert_equal(state, state_at(7))
    assert metadata["data"] == {"next_index": 56}
    assert steps_in(stage) == ["2", "7"]


@pytest.fixture
def damaged(folder, tmp_path):
    """A copy of the stage's folder and the folder of its last step, to be damaged."""
    shutil.copytree(folder, tmp_path / "stage")
    return tmp_path / "stage", tmp_path / "stage" / "checkpoints" / "2"


def files_in(step):
    return sorted(path for path in step.rglob("*") if path.is_file())


def flip_bit(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def flip_random_bit(path):
    flip_bit(path, int(np.random.default_rng(0).integers(8 * path.stat().st_size)))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "change", [flip_random_bit, truncate, lambda path: path.unlink()], ids=["flipped", "cut", "deleted"]
)
def test_damage_to_any_file_is_reported(damaged, change):
    stage, step = damaged
    changed = 0
    for path in files_in(step):
        before = path.read_bytes()
        if not before and change in (flip_random_bit, truncate):
            continue
        change(path)
        problems = checksums.verify(step, lambda name: True)
        # damage to the manifest is reported by the file whose checksum has changed
        assert any(path.name in problem for problem in problems) or (problems and path.name == checksums.MANIFEST)
        path.write_bytes(before)
        changed += 1
    assert checksums.verify(step, lambda name: True) == []
    assert changed > 30


def test_verification_by_shards(damaged):
    stage, step = damaged
    for path in files_in(step / "params"):
        flip_bit(path, 3)
    problems = [checksums.verify(step, lambda name: True, shard, 3) for shard in range(3)]
    assert all(problems)
    assert sorted(sum(problems, [])) == sorted(checksums.verify(step, lambda name: True))


def test_damaged_step_is_quarantined(damaged):
    stage, step = damaged
    messages = []
    for number in ("", ".2"):  # a second time beside the first
        flip_bit(step / "params" / "manifest.ocdbt", 100)
        damaged_files = contents(step)
        checkpoints = Checkpoints(stage, keep=5, log=messages.append)
        state, metadata = checkpoints.restore(abstract_on(one_device())[0])
        assert checkpoints.latest_step == 1
        assert_equal(state, state_at(1))
        assert metadata["data"] == {"next_index": 8}
        message = messages.pop()
        assert "params/manifest.ocdbt" in message
        assert f"2.damaged{number}" in message
        assert not messages
        assert contents(stage / "checkpoints" / f"2.damaged{number}") == damaged_files
        checkpoints.save(state_at(2), {"next_index": 16}, CONFIG)
        checkpoints.close()
    assert steps_in(stage) == ["1", "2", "2.damaged", "2.damaged.2"]


def test_step_without_checksums_is_damaged(damaged):
    stage, step = damaged
    shutil.rmtree(step)
    step.mkdir()
    messages = []
    checkpoints = Checkpoints(stage, keep=5, log=messages.append)
    assert int(checkpoints.restore(abstract_on(one_device())[0])[0].step) == 1
    checkpoints.close()
    assert "SHA256SUMS is missing" in messages[0]


def test_reader_ignores_damaged_ema(damaged, caplog):
    stage, step = damaged
    params = abstract_on(one_device())[0].params
    for item, expected in (("opt_state", 2), ("ema_params", 1)):
        flip_bit(next((step / item / "ocdbt.process_0" / "d").iterdir()), 80)
        before = contents(stage)
        weights = SavedWeights(stage)
        assert_equal(weights.load(params), state_at(expected).ema_params)
        assert weights.step == expected
        assert contents(stage) == before
        assert (f"{step} is damaged" in caplog.text) == (item == "ema_params")


def test_all_steps_damaged(damaged):
    stage, step = damaged
    for number in "12":
        (stage / "checkpoints" / number / "step" / "manifest.ocdbt").unlink()
    checkpoints = Checkpoints(stage, keep=5, log=lambda text: None)
    with pytest.raises(TrainingError, match="2 of 2 are damaged"):
        checkpoints.restore(abstract_on(one_device())[0])
    checkpoints.close()
    assert steps_in(stage) == ["1.damaged", "2.damaged"]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs GNU coreutils")
def test_sha256sum_reads_checksums(folder):
    step = folder / "checkpoints" / "2"
    result = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=step, capture_output=True, text=True
    )
    assert result.returncode == 0
    assert result.stdout.count(": OK") == len(files_in(step)) - 1


def test_save_without_space_keeps_older_step(tmp_path):
    save_steps(tmp_path, [1])
    before = contents(tmp_path)
    checkpoints = Checkpoints(tmp_path, keep=2)
    state = state_at(2)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, unlimited[1]))
    try:
        checkpoints.save(state, {}, CONFIG)
        with pytest.raises(TrainingError, match=r"step 2 \([\d,]+ bytes\).*step 1 is intact") as error:
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == before
