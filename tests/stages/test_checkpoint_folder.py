"""Checkpoints in a bucket: complete or not used, whatever breaks off a save or a deletion, and damage is found."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.errors import TrainingError
from imagen_jax.stages.checkpoint_folder import checkpoint_folder
from imagen_jax.stages.checkpoints import Checkpoints
from imagen_jax.training.state import abstract_state
from tests.helpers.configs import base_config, one_device

CONFIG = base_config()


def init(key):
    return {"kernel": jax.random.normal(key, (64, 64))}


@pytest.fixture(scope="module")
def abstract_and_state():
    abstract, make = abstract_state(init, optax.adam(1e-3), 0, one_device())
    return abstract, make()


@pytest.fixture
def save(abstract_and_state):
    def save(workdir, *steps, keep=9):
        checkpoints = Checkpoints(workdir, keep=keep)
        for step in steps:
            checkpoints.save(abstract_and_state[1].replace(step=jnp.int32(step)), {"next_index": step}, CONFIG)
        checkpoints.close()

    return save


def names(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def test_saved_is_restored(bucket, save, abstract_and_state):
    workdir = bucket / "saved"
    save(workdir, 1, 2, 3, keep=2)
    assert names(workdir) == ["2", "3"]
    checkpoints = Checkpoints(workdir)
    state, metadata = checkpoints.restore(abstract_and_state[0])
    checkpoints.close()
    assert int(state.step) == 3 and metadata["data"] == {"next_index": 3}
    np.testing.assert_array_equal(state.params["kernel"], abstract_and_state[1].params["kernel"])


@pytest.mark.parametrize("killed", ["save", "deletion"])
def test_incomplete_is_deleted(bucket, save, killed):
    """Nothing without checksums is a checkpoint; a reader leaves it, the next writer deletes it."""
    workdir = bucket / f"killed-{killed}"
    save(workdir, 1, 2)
    newest = workdir / "checkpoints" / "2"
    (newest / "SHA256SUMS").unlink()
    if killed == "deletion":
        (newest / "_CHECKPOINT_METADATA").unlink()
    reader = Checkpoints(workdir)
    assert reader.latest_step == 1 and names(workdir) == ["1", "2"]
    reader.close()
    save(workdir, 3)
    assert names(workdir) == ["1", "3"]


def test_damaged_is_marked(bucket, save, abstract_and_state):
    """A flipped bit is found; the checkpoint is not used again, and its step can be saved again."""
    workdir, log = bucket / "damaged", []
    save(workdir, 1, 2)
    newest = workdir / "checkpoints" / "2"
    sizes = {size: name for name, size in newest.tree().items() if name.startswith("params")}
    path = newest / sizes[max(sizes)]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    checkpoints = Checkpoints(workdir, keep=9, log=log.append)
    state, _ = checkpoints.restore(abstract_and_state[0])
    checkpoints.close()
    assert int(state.step) == 1 and "2.damaged" in log[0] and path.name in log[0]
    assert names(workdir) == ["1", "2", "2.damaged"]
    assert Checkpoints(workdir).latest_step == 1
    save(workdir, 2)
    assert names(workdir) == ["1", "2"] and Checkpoints(workdir).latest_step == 2


@pytest.mark.parametrize("deleted", ["checksums", "all"])
def test_killed_while_damaged_is_replaced(bucket, save, deleted):
    """The marker of a checkpoint that is gone does not hide the next one of its step."""
    workdir = bucket / f"replaced-{deleted}"
    save(workdir, 1, 2)
    folder = checkpoint_folder(workdir / "checkpoints")
    folder.quarantine(2, "it is damaged")
    if deleted == "all":
        folder.delete(2)
    (workdir / "checkpoints" / "2" / "SHA256SUMS").unlink(missing_ok=True)
    save(workdir, 2)
    assert names(workdir) == ["1", "2"] and folder.steps() == [1, 2]


def test_vanished_bucket_is_no_empty_folder(bucket, save):
    """A run whose checkpoints cannot be listed does not begin again."""
    workdir = bucket / "hidden"
    save(workdir, 1)
    bucket.faults.vanished = True
    with pytest.raises(TrainingError, match="no bucket"):
        Checkpoints(workdir, keep=9)
    bucket.faults.vanished = False
    assert names(workdir) == ["1"]
