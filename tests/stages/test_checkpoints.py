"""A stage's folder: restored onto any mesh, read in part, never mixed up, never half there."""

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
from imagen_jax.stages.workdir import open_workdir, read_config
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


def saved(folder, steps, keep=10):
    checkpoints = Checkpoints(folder, keep=keep)
    for step in steps:
        checkpoints.save(state_at(step), {"next_index": 8 * step}, CONFIG)
    checkpoints.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints at steps 1 and 2, saved from a split mesh. For reading only."""
    folder = tmp_path_factory.mktemp("stage")
    saved(folder, [1, 2])
    return folder


def equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.parametrize("make_mesh", [one_device, eight_devices, split_devices])
def test_a_state_is_restored_onto_any_mesh(folder, make_mesh):
    abstract, _ = abstract_on(make_mesh())
    checkpoints = Checkpoints(folder)
    state, about = checkpoints.restore(abstract)
    checkpoints.close()
    equal(state, state_at(2))
    assert about["data"] == {"next_index": 16}
    assert about["config"] == to_json(CONFIG)
    assert about["versions"]["jax"] == jax.__version__
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert leaf.dtype == wanted.dtype
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


@pytest.mark.trap("EMA swapped into parameters")
def test_the_raw_parameters_are_not_the_average(folder):
    checkpoints = Checkpoints(folder)
    state, _ = checkpoints.restore(abstract_on(one_device())[0])
    checkpoints.close()
    np.testing.assert_allclose(state.ema_params["kernel"] - state.params["kernel"], 2, atol=1e-5)


@pytest.mark.trap("EMA swapped into parameters")
def test_sampling_reads_the_average_and_nothing_else(folder, tmp_path):
    alone = tmp_path / "stage"
    shutil.copytree(folder, alone)
    for item in ("params", "opt_state"):
        shutil.rmtree(alone / "checkpoints" / "2" / item)
    checkpoints = Checkpoints(alone)
    ema = checkpoints.restore_ema(abstract_on(eight_devices())[0].params)
    checkpoints.close()
    equal(ema, state_at(2).ema_params)


def test_reading_writes_nothing(folder):
    before = contents(folder)
    checkpoints = Checkpoints(folder)
    checkpoints.restore_ema(abstract_on(one_device())[0].params)
    checkpoints.close()
    assert contents(folder) == before


def test_looking_for_checkpoints_makes_no_folder(tmp_path):
    checkpoints = Checkpoints(tmp_path / "stage")
    assert checkpoints.latest_step is None
    checkpoints.close()
    assert not (tmp_path / "stage").exists()


@pytest.mark.parametrize(
    "other, said",
    [
        (lambda key: {**init(key), "more": jnp.zeros(2)}, "params/more is missing"),
        (lambda key: {"kernel": init(key)["kernel"]}, "params/bias/b is surplus"),
        (lambda key: {**init(key), "bias": {"b": jnp.zeros(5)}}, r"params/bias/b is float32\[4\], not float32\[5\]"),
        (lambda key: {**init(key), "bias": {"b": jnp.zeros(4, jnp.bfloat16)}}, "bias/b is float32.*, not bfloat16"),
        (lambda key: {f"kernel_{i}": jnp.zeros(1) for i in range(20)}, "params/kernel_19 is missing"),
    ],
    ids=["missing", "surplus", "shape", "type", "all"],
)
def test_a_checkpoint_of_another_model_is_refused_with_what_differs(folder, other, said):
    abstract, _ = abstract_on(one_device(), other)
    checkpoints = Checkpoints(folder)
    for restore, wanted in ((checkpoints.restore, abstract), (checkpoints.restore_ema, abstract.params)):
        with pytest.raises(ConfigError, match=said) as refused:
            restore(wanted)
        assert "another model" in str(refused.value)
        assert "\n" not in str(refused.value)
    checkpoints.close()


def test_another_optimizer_is_refused_but_moments_may_be_of_another_precision(folder):
    checkpoints = Checkpoints(folder)
    with pytest.raises(ConfigError, match="opt_state/.*/trace/kernel is missing.*opt_state/.*/mu/kernel is surplus"):
        checkpoints.restore(abstract_on(one_device(), optimizer=optax.sgd(1e-3, momentum=0.9))[0])
    shorter, _ = checkpoints.restore(abstract_on(one_device(), optimizer=optax.adam(1e-3, mu_dtype=jnp.bfloat16))[0])
    checkpoints.close()
    assert {leaf.dtype for leaf in jax.tree.leaves(shorter.opt_state[0].mu)} == {jnp.dtype("bfloat16")}


def steps_in(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("keep", [1, 2])
def test_the_latest_are_kept(tmp_path, keep):
    saved(tmp_path, [1, 2, 3], keep)
    assert steps_in(tmp_path) == ["1", "2", "3"][-keep:]


def test_the_best_is_kept_beside_the_latest(tmp_path):
    for first in (1, 4):  # in a run that goes on too
        checkpoints = Checkpoints(tmp_path, keep=1, keep_best=True)
        for step, score in enumerate([0.5, 0.3, float("nan")] if first == 1 else [0.4, None, 0.3], first):
            checkpoints.save(state_at(step), {}, CONFIG, score)
        checkpoints.close()
        assert steps_in(tmp_path) == (["2", "3"] if first == 1 else ["6"])


def test_a_step_is_saved_once(tmp_path):
    saved(tmp_path, [1])
    before = contents(tmp_path)
    saved(tmp_path, [1])
    assert contents(tmp_path) == before


def test_what_a_killed_save_leaves_is_no_checkpoint(folder, tmp_path):
    stage = tmp_path / "stage"
    shutil.copytree(folder, stage)
    leftover = stage / "checkpoints" / "7.orbax-checkpoint-tmp"
    shutil.copytree(folder / "checkpoints" / "2", leftover)
    reader = Checkpoints(stage)
    assert reader.latest_step == 2
    reader.close()
    assert leftover.exists()  # who only reads, deletes nothing: it may be another's save in progress
    writer = Checkpoints(stage, keep=2)
    assert writer.latest_step == 2
    writer.save(state_at(7), {"next_index": 56}, CONFIG)
    writer.close()
    reader = Checkpoints(stage)
    state, about = reader.restore(abstract_on(one_device())[0])
    reader.close()
    equal(state, state_at(7))
    assert about["data"] == {"next_index": 56}
    assert steps_in(stage) == ["2", "7"]


@pytest.fixture
def damaged(folder, tmp_path):
    """A copy of the folder, and the last step in it, to be damaged."""
    shutil.copytree(folder, tmp_path / "stage")
    return tmp_path / "stage", tmp_path / "stage" / "checkpoints" / "2"


def files_of(step):
    return sorted(path for path in step.rglob("*") if path.is_file())


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def flip_any(path):
    flip(path, int(np.random.default_rng(0).integers(8 * path.stat().st_size)))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("change", [flip_any, cut, lambda path: path.unlink()], ids=["flipped", "cut", "deleted"])
def test_damage_to_any_file_is_found_and_the_file_named(damaged, change):
    stage, step = damaged
    changed = 0
    for path in files_of(step):
        before = path.read_bytes()
        if not before and change in (flip_any, cut):
            continue
        change(path)
        found = checksums.verify(step, lambda name: True)
        # of a checksum that was altered the file is named that it is of
        assert any(path.name in fault for fault in found) or (found and path.name == checksums.MANIFEST)
        path.write_bytes(before)
        changed += 1
    assert checksums.verify(step, lambda name: True) == []
    assert changed > 30


def test_the_shares_of_several_processes_find_what_one_finds(damaged):
    stage, step = damaged
    for path in files_of(step / "params"):
        flip(path, 3)
    found = [checksums.verify(step, lambda name: True, share, 3) for share in range(3)]
    assert all(found)
    assert sorted(sum(found, [])) == sorted(checksums.verify(step, lambda name: True))


def test_a_damaged_step_is_set_aside_and_the_one_before_restored(damaged):
    stage, step = damaged
    said = []
    for number in ("", ".2"):  # a second time beside the first
        flip(step / "params" / "manifest.ocdbt", 100)
        wrong = contents(step)
        checkpoints = Checkpoints(stage, keep=5, log=said.append)
        state, about = checkpoints.restore(abstract_on(one_device())[0])
        assert checkpoints.latest_step == 1
        equal(state, state_at(1))
        assert about["data"] == {"next_index": 8}
        assert "params/manifest.ocdbt differs from its checksum; it is set aside as 2.damaged" in said.pop()
        assert not said
        assert contents(stage / "checkpoints" / f"2.damaged{number}") == wrong
        checkpoints.save(state_at(2), {"next_index": 16}, CONFIG)
        checkpoints.close()
    assert steps_in(stage) == ["1", "2", "2.damaged", "2.damaged.2"]


def test_a_step_without_checksums_is_no_whole_one(damaged):
    stage, step = damaged
    shutil.rmtree(step)
    step.mkdir()
    said = []
    checkpoints = Checkpoints(stage, keep=5, log=said.append)
    assert int(checkpoints.restore(abstract_on(one_device())[0])[0].step) == 1
    checkpoints.close()
    assert "SHA256SUMS is missing" in said[0]


def test_a_reader_passes_a_damaged_average_over_and_leaves_it_where_it_is(damaged, capsys):
    stage, step = damaged
    params = abstract_on(one_device())[0].params
    for item, expected in (("opt_state", 2), ("ema_params", 1)):
        flip(next((step / item / "ocdbt.process_0" / "d").iterdir()), 80)
        before = contents(stage)
        checkpoints = Checkpoints(stage)
        equal(checkpoints.restore_ema(params), state_at(expected).ema_params)
        assert checkpoints.latest_step == expected
        checkpoints.close()
        assert contents(stage) == before
        assert ("it is passed over" in capsys.readouterr().err) == (item == "ema_params")


def test_where_every_step_is_damaged_nothing_is_begun_anew_unasked(damaged):
    stage, step = damaged
    for number in "12":
        (stage / "checkpoints" / number / "step" / "manifest.ocdbt").unlink()
    checkpoints = Checkpoints(stage, keep=5, log=lambda text: None)
    with pytest.raises(TrainingError, match="has no whole checkpoint left: of 2 there were, each is damaged"):
        checkpoints.restore(abstract_on(one_device())[0])
    checkpoints.close()
    assert steps_in(stage) == ["1.damaged", "2.damaged"]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="a program of GNU")
def test_the_checksums_are_those_that_sha256sum_reads(folder):
    step = folder / "checkpoints" / "2"
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=step, capture_output=True, text=True
    )
    assert checked.returncode == 0
    assert checked.stdout.count(": OK") == len(files_of(step)) - 1


def test_a_save_for_which_there_is_no_room_is_told_and_leaves_the_older_step(tmp_path):
    saved(tmp_path, [1])
    before = contents(tmp_path)
    checkpoints = Checkpoints(tmp_path, keep=2)
    state = state_at(2)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, unlimited[1]))
    try:
        checkpoints.save(state, {}, CONFIG)
        with pytest.raises(TrainingError, match=r"of step 2, of [\d,]+ bytes, .*that of step 1 is intact") as told:
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert str(tmp_path) in str(told.value)
    assert "\n" not in str(told.value)
    assert contents(tmp_path) == before


class TestWorkdir:
    @pytest.fixture
    def workdir(self, tmp_path):
        open_workdir(tmp_path / "stage", CONFIG)
        return tmp_path / "stage"

    def test_the_config_is_read_as_it_was_written(self, workdir):
        assert to_json(read_config(workdir)) == to_json(CONFIG)

    @pytest.mark.parametrize(
        "changes",
        [
            {"training.steps": 99},
            {"optimizer.learning_rate": 1e-4},
            {"sampling.guidance_scale": 9.0},
            {"mesh.data": 2, "mesh.fsdp": 4},
            {"data.threads": 7},
            {},
        ],
        ids=lambda changes: "-".join(changes),
    )
    def test_a_run_may_go_on_with_these_changed(self, workdir, changes):
        changed = base_config(**changes)
        open_workdir(workdir, changed)
        assert to_json(read_config(workdir)) == to_json(changed)

    @pytest.mark.parametrize(
        "name, value",
        [
            ("model.channels", 16),
            ("seed", 1),
            ("data.split", "validation"),
            ("text.length", 25),
            ("diffusion.null_text", "empty"),
        ],
    )
    def test_any_other_change_is_refused_and_nothing_written(self, workdir, name, value):
        before = contents(workdir)
        with pytest.raises(ConfigError, match=f"{name} was .* and is now {value!r}"):
            open_workdir(workdir, base_config(**{name: value}))
        assert contents(workdir) == before

    def test_a_file_in_the_folders_place_is_refused(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(ConfigError, match="--workdir .* cannot be written"):
            open_workdir(tmp_path / "file", CONFIG)
        with pytest.raises(ConfigError, match="--workdir .* cannot be written"):
            open_workdir(tmp_path / "file" / "below", CONFIG)
        assert (tmp_path / "file").read_text() == "mine"

    @pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
    def test_a_config_that_is_no_json_is_refused(self, workdir, text):
        (workdir / "config.json").write_text(text)
        with pytest.raises(ConfigError, match="config.json"):
            read_config(workdir)

    def test_no_folder_and_no_stage_are_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="does not exist"):
            read_config(tmp_path / "none")
        with pytest.raises(ConfigError, match="is no stage folder"):
            read_config(tmp_path)
