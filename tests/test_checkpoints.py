"""A stage's folder: restored onto any mesh, read in part, never mixed up, never half there."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.checkpoints import Checkpoints, open_workdir, read_config
from imagen_jax.errors import UsageError
from imagen_jax.training.state import abstract_state
from tests.tiny import base_config, contents, eight_devices, one_device, split_devices

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
    state, data = checkpoints.restore(abstract)
    checkpoints.close()
    equal(state, state_at(2))
    assert data == {"next_index": 16}
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert leaf.dtype == wanted.dtype
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


def test_the_raw_parameters_are_not_the_average(folder):
    checkpoints = Checkpoints(folder)
    state, _ = checkpoints.restore(abstract_on(one_device())[0])
    checkpoints.close()
    np.testing.assert_allclose(state.ema_params["kernel"] - state.params["kernel"], 2, atol=1e-5)


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
        (lambda key: {**init(key), "more": jnp.zeros(2)}, "more"),
        (lambda key: {"kernel": init(key)["kernel"]}, "bias/b"),
        (lambda key: {**init(key), "bias": {"b": jnp.zeros(5)}}, r"bias/b is float32\[4\], not float32\[5\]"),
        (lambda key: {**init(key), "bias": {"b": jnp.zeros(4, jnp.bfloat16)}}, "bias/b is float32.*, not bfloat16"),
    ],
    ids=["missing", "surplus", "shape", "type"],
)
def test_a_checkpoint_of_another_model_is_refused_with_what_differs(folder, other, said):
    abstract, _ = abstract_on(one_device(), other)
    checkpoints = Checkpoints(folder)
    for restore, wanted in ((checkpoints.restore, abstract), (checkpoints.restore_ema, abstract.params)):
        with pytest.raises(UsageError, match=said) as refused:
            restore(wanted)
        assert "another model" in str(refused.value)
        assert "\n" not in str(refused.value)
    checkpoints.close()


@pytest.mark.parametrize("keep", [1, 2])
def test_the_latest_are_kept(tmp_path, keep):
    saved(tmp_path, [1, 2, 3], keep)
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    assert kept == [1, 2, 3][-keep:]


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
    state, data = reader.restore(abstract_on(one_device())[0])
    reader.close()
    equal(state, state_at(7))
    assert data == {"next_index": 56}


class TestWorkdir:
    @pytest.fixture
    def workdir(self, tmp_path):
        open_workdir(tmp_path / "stage", CONFIG)
        return tmp_path / "stage"

    def test_the_config_is_read_as_it_was_written(self, workdir):
        assert json.loads(read_config(workdir).to_json()) == json.loads(CONFIG.to_json())

    @pytest.mark.parametrize(
        "changes",
        [
            {"training.steps": 99},
            {"optimizer.learning_rate": 1e-4},
            {"sampling.guidance": 9.0},
            {"mesh.data": 2, "mesh.fsdp": 4},
            {"data.threads": 7},
            {},
        ],
        ids=lambda changes: "-".join(changes),
    )
    def test_a_run_may_go_on_with_these_changed(self, workdir, changes):
        changed = base_config(**changes)
        open_workdir(workdir, changed)
        assert json.loads(read_config(workdir).to_json()) == json.loads(changed.to_json())

    @pytest.mark.parametrize(
        "name, value",
        [
            ("model.channels", 16),
            ("seed", 1),
            ("data.split", "validation"),
            ("text.length", 25),
            ("diffusion.unconditional", "empty"),
        ],
    )
    def test_any_other_change_is_refused_and_nothing_written(self, workdir, name, value):
        before = contents(workdir)
        with pytest.raises(UsageError, match=f"{name} was .* and is now {value!r}"):
            open_workdir(workdir, base_config(**{name: value}))
        assert contents(workdir) == before

    def test_a_file_in_the_folders_place_is_refused(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(UsageError, match="--workdir .* cannot be written"):
            open_workdir(tmp_path / "file", CONFIG)
        with pytest.raises(UsageError, match="--workdir .* cannot be written"):
            open_workdir(tmp_path / "file" / "below", CONFIG)
        assert (tmp_path / "file").read_text() == "mine"

    @pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
    def test_a_config_that_is_no_json_is_refused(self, workdir, text):
        (workdir / "config.json").write_text(text)
        with pytest.raises(UsageError, match="config.json"):
            read_config(workdir)

    def test_no_folder_and_no_stage_are_refused(self, tmp_path):
        with pytest.raises(UsageError, match="does not exist"):
            read_config(tmp_path / "none")
        with pytest.raises(UsageError, match="is no stage folder"):
            read_config(tmp_path)
