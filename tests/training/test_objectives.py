"""Another objective, a denoising autoencoder's, trains through the same loop as the stages of the cascade."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.parallel import batching
from imagen_jax.stages.checkpoints import Checkpoints
from imagen_jax.stages.frozen import load_frozen
from imagen_jax.training.loop import train
from imagen_jax.training.metric_writer import read_metrics
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.state import Frozen, abstract_parts, first_state, init_params
from imagen_jax.training.step import make_train_step
from tests.helpers.configs import STEPS, base_config, eight_devices, one_device
from tests.helpers.denoising import Denoising, DenoisingTask


def config_of(**changes):
    return base_config(**{"optimizer.clip_norm": 1e9, "optimizer.eps": 1e-3, **changes})


def state_of(folder, config):
    objective, optimizer = Denoising(config), make_optimizer(config.optimizer, config.training.steps)
    parts = abstract_parts(objective.init, optimizer, eight_devices(), (), config.training.trainable)
    checkpoints = Checkpoints(folder)
    state, _ = checkpoints.restore(parts[0])
    checkpoints.close()
    return jax.device_get((state, load_frozen(folder, parts[1])))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("autoencoder") / "unbroken"
    train(config_of(), folder, task=DenoisingTask)
    return folder


def test_it_trains(folder):
    lines = [line for line in read_metrics(folder) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert all(line["largest_error"] > line["loss"] for line in lines)
    assert not any(name.startswith("loss_at_noise") for line in lines for name in line)
    assert [path.name for path in sorted((folder / "previews").iterdir())] == ["00000003.png", "00000006.png"]
    log = (folder / "log.txt").read_text()
    assert "largest_error" in log
    assert "noise" not in log


def test_resume_is_bit_exact(folder, tmp_path):
    train(config_of(**{"training.steps": 3}), tmp_path / "resumed", task=DenoisingTask)
    train(config_of(), tmp_path / "resumed", task=DenoisingTask)
    one, other = state_of(folder, config_of()), state_of(tmp_path / "resumed", config_of())
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_fine_tuning(folder, tmp_path):
    config = config_of(**{"training.init_from": str(folder), "training.trainable": ("decoder",)})
    train(config, tmp_path / "tuned", task=DenoisingTask)
    (before, _), (after, frozen) = state_of(folder, config_of()), state_of(tmp_path / "tuned", config)
    assert after.params.keys() == after.ema_params.keys() == {"decoder"}
    jax.tree.map(np.testing.assert_array_equal, frozen, {"encoder": before.ema_params["encoder"]})
    assert not np.array_equal(after.params["decoder"]["kernel"], before.ema_params["decoder"]["kernel"])


def test_best_preview_is_kept(tmp_path):
    scores = iter([5.0, 1.0, 4.0, 3.0, 2.0, 6.0])

    class ScoredTask(DenoisingTask):
        def make_preview(self):
            preview = super().make_preview()
            return lambda params: preview(params)._replace(score=next(scores))

    changes = {"training.keep_checkpoints": 1, "training.keep_best": True, "training.preview_every": 1}
    train(config_of(**changes, **{"training.save_every": 1}), tmp_path, task=ScoredTask)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "6"]


@pytest.mark.slow
def test_without_previews(tmp_path):
    class HiddenTask(DenoisingTask):
        def make_preview(self):
            return None

    assert train(config_of(**{"training.steps": 2}), tmp_path, task=HiddenTask).step == 2
    assert not (tmp_path / "previews").exists()


@pytest.mark.parametrize("devices", [one_device, eight_devices])
def test_step_does_not_depend_on_micro_batches(devices):
    """Nor on the mesh: all randomness is drawn before the examples are split."""
    mesh, states = devices(), []
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    for steps in (1, 2):
        config = config_of(**{"training.grad_accum_steps": steps, "training.batch_size": 16})
        objective, optimizer = Denoising(config), make_optimizer(config.optimizer, config.training.steps)
        abstract, _ = abstract_parts(objective.init, optimizer, mesh)
        state = first_state(optimizer, abstract, init_params(objective.init, 0, abstract.params))
        step = make_train_step(objective, config, optimizer, abstract, mesh)
        batch = batching.shard_local_batch({"image": images}, objective.batch_axes, mesh)
        states.append(jax.device_get(step(state, Frozen({"scale": jnp.float32(0.1)}), batch)))
    (one, metrics), (other, other_metrics) = states
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.params, other.params)
    np.testing.assert_allclose(metrics["largest_error"], other_metrics["largest_error"], rtol=1e-5)
