"""A checkpoint that is deleted while it is read, at whatever moment, is no damage: the next one is read."""

import gc
import logging
import re
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.errors import ConfigError, TrainingError
from imagen_jax.io import checksums
from imagen_jax.io.paths import bucket_path
from imagen_jax.stages import checkpoints as checkpoints_room
from imagen_jax.stages import saved_arrays
from imagen_jax.stages.checkpoint_folder import CheckpointFolder, checkpoint_folder
from imagen_jax.stages.checkpoints import Checkpoints, saved_config
from imagen_jax.stages.weights import SavedWeights
from imagen_jax.training.state import abstract_state
from tests.helpers.configs import base_config, contents, one_device

CONFIG = base_config()
# what reads a checkpoint, from its listing to its arrays
PHASES = {
    "list": (CheckpointFolder, "identity"),
    "list files": (checksums, "_sizes"),
    "verify": (saved_arrays, "verify"),
    "hash": (checksums, "sha256_file"),
    "step": (saved_arrays, "load_integer"),
    "shapes": (saved_arrays, "shapes"),
    "metadata": (Checkpoints, "metadata"),
    "load": (saved_arrays, "load"),
}


@pytest.fixture(scope="module")
def abstract_and_state():
    abstract, make = abstract_state(
        lambda key: {"kernel": jax.random.normal(key, (64, 64)), "bias": jnp.zeros(8)},
        optax.adam(1e-3),
        0,
        one_device(),
    )
    return abstract, make()


def state_at(state, step):
    return state.replace(
        step=jnp.int32(step),
        params=jax.tree.map(lambda leaf: leaf + step, state.params),
        ema_params=jax.tree.map(lambda leaf: leaf - step, state.params),
    )


@pytest.fixture(params=["disk", "bucket"])
def workdir(request, tmp_path):
    return (request.getfixturevalue("bucket") if request.param == "bucket" else tmp_path) / re.sub(
        r"\W", "_", request.node.name
    )


@pytest.fixture
def save(workdir, abstract_and_state):
    def save(*steps, keep=9):
        checkpoints = Checkpoints(workdir, keep=keep)
        for step in steps:
            checkpoints.save(state_at(abstract_and_state[1], step), {"next_index": step}, CONFIG)
        checkpoints.close()

    return save


def names(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def on_call(monkeypatch, place, do, when):
    """Does something before or after the first call of a function."""
    owner, name = place
    original, calls = getattr(owner, name), []

    def called(*args, **options):
        is_due = not calls  # what it does may call the function too
        calls.append(args)
        if is_due and when == "before":
            do()
        result = original(*args, **options)
        if is_due and when == "after":
            do()
        return result

    monkeypatch.setattr(owner, name, called)


@pytest.mark.parametrize(
    "workdir, phase, when",
    [
        *(("disk", phase, when) for phase in PHASES for when in ("before", "after")),
        ("bucket", "load", "before"),
        *(pytest.param("bucket", phase, "before", marks=pytest.mark.slow) for phase in ("list", "hash", "shapes")),
    ],
    indirect=["workdir"],
)
def test_next_one_is_read(workdir, save, abstract_and_state, monkeypatch, caplog, phase, when):
    save(1, 2)
    folder = checkpoint_folder(workdir / "checkpoints")

    # as a run does: the new checkpoint is complete before the old ones are deleted
    on_call(monkeypatch, PHASES[phase], lambda: save(3, keep=1), when)
    with caplog.at_level(logging.WARNING):
        weights = SavedWeights(workdir)
        loaded = weights.load(abstract_and_state[0].params)
    assert weights.step == 3 and folder.steps() == [3]
    expected = state_at(abstract_and_state[1], 3).ema_params
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)
    # not those of a cloud's libraries, which look for credentials that no test has
    assert not [record for record in caplog.records if record.name.startswith("imagen_jax")]


def test_copy_is_read_while_a_run_trains(workdir, save, abstract_and_state, monkeypatch, tmp_path):
    """So that what a library below does about a file that is gone is never seen; nothing is left of the copy."""
    save(1, 2)
    (workdir / ".lock").write_bytes(b"{}")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    weights = SavedWeights(workdir)
    checkpoint_folder(workdir / "checkpoints").delete(2)
    loaded = weights.load(abstract_and_state[0].params)
    jax.tree.map(np.testing.assert_array_equal, loaded, state_at(abstract_and_state[1], 2).ema_params)
    assert weights.step == 2
    del weights
    gc.collect()
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.slow
def test_endless_deletions_end(workdir, save, monkeypatch):
    save(1)
    monkeypatch.setattr(checkpoints_room, "MAX_VANISHED", 3)
    monkeypatch.setattr(Checkpoints, "_has_vanished", lambda self, step: True)
    monkeypatch.setattr(Checkpoints, "_copy", lambda self, step, items: None)
    with pytest.raises(TrainingError, match="keep_checkpoints"):
        SavedWeights(workdir)


def test_last_one_vanishes(workdir, save, monkeypatch):
    save(1)
    delete = checkpoint_folder(workdir / "checkpoints").delete
    on_call(monkeypatch, PHASES["verify"], lambda: delete(1), "before")
    with pytest.raises(ConfigError, match="no complete checkpoint"):
        SavedWeights(workdir)


def test_config_of_the_next_one(workdir, save, monkeypatch):
    save(1, 2)
    on_call(monkeypatch, (checksums, "read_verified"), lambda: save(3, keep=1), "before")
    assert saved_config(workdir)[0] == 3


def test_chosen_step_and_weights(workdir, save, abstract_and_state):
    save(1, 2, 3)
    weights = SavedWeights(workdir, "params", 2)
    loaded = weights.load(abstract_and_state[0].params)
    jax.tree.map(np.testing.assert_array_equal, loaded, state_at(abstract_and_state[1], 2).params)
    assert weights.step == 2
    with pytest.raises(ConfigError, match="step 7.* 1, 2, 3"):
        SavedWeights(workdir, step=7)


def test_chosen_step_is_damaged(workdir, save):
    save(1, 2)
    (workdir / "checkpoints" / "2" / "ema_params" / "_METADATA").write_bytes(b"{}")
    with pytest.raises(TrainingError, match="_METADATA"):
        SavedWeights(workdir, step=2)
    assert SavedWeights(workdir).step == 1


# The step that is saved in a checkpoint counts, and not the name of its folder.


def copy_step(workdir, step, name):
    for file in checksums.list_files(workdir / "checkpoints" / str(step)) + [checksums.MANIFEST]:
        target = workdir / "checkpoints" / name / file
        if bucket_path(workdir) is None:
            target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((workdir / "checkpoints" / str(step) / file).read_bytes())


@pytest.mark.parametrize("original", ["kept", "gone"])
def test_misnamed_checkpoint(workdir, save, abstract_and_state, caplog, original):
    save(1, 2)
    copy_step(workdir, 2, "9")
    if original == "gone":
        checkpoint_folder(workdir / "checkpoints").delete(2)
    before = names(workdir)
    assert SavedWeights(workdir).step == 2
    assert "was saved at step 2" in caplog.text
    assert names(workdir) == before  # a reader leaves it
    with pytest.raises(ConfigError, match="saved at step 2"):
        SavedWeights(workdir, step=9)
    log = []
    writer = Checkpoints(workdir, keep=9, log=log.append)
    state, metadata = writer.restore(abstract_and_state[0])
    assert int(state.step) == 2 and metadata["data"] == {"next_index": 2}
    assert len(log) == 1 and "was saved at step 2" in log[0]
    writer.save(state_at(state, 9), {"next_index": 9}, CONFIG)
    writer.close()
    assert SavedWeights(workdir).step == 9


def test_foreign_names_are_ignored(tmp_path, abstract_and_state):
    folder = tmp_path / "checkpoints"
    foreign = ["200 (copy)", "200.bak", "0200", "notes.unfinished", "٣"]
    for name in foreign:
        (folder / name).mkdir(parents=True)
    for name in (".DS_Store", "2"):
        (folder / name).write_text("mine")
    before = contents(folder)
    with pytest.raises(ConfigError, match="no complete checkpoint"):
        SavedWeights(tmp_path)
    assert contents(folder) == before
    log = []
    checkpoints = Checkpoints(tmp_path, keep=1, log=log.append)
    for step in (1, 2):
        checkpoints.save(state_at(abstract_and_state[1], step), {}, CONFIG)
    checkpoints.close()
    assert SavedWeights(tmp_path).step == 2
    assert {*foreign, ".DS_Store", "2", "2.damaged"} == {path.name for path in folder.iterdir()}
    assert (folder / "2.damaged").read_text() == "mine" and "2.damaged" in log[0]


def test_newer_copy_costs_nothing(tmp_path, abstract_and_state):
    """One that is put beside a run's checkpoints while it trains does not take the place of one of them."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state_at(abstract_and_state[1], 1), {}, CONFIG)
    checkpoints.wait()
    copy_step(tmp_path, 1, "9")
    checkpoints.save(state_at(abstract_and_state[1], 2), {}, CONFIG)
    checkpoints.close()
    assert names(tmp_path) == ["2", "9"]
    assert SavedWeights(tmp_path).step == 2
